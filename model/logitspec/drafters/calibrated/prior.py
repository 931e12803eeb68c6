"""What is believed of each grade before anything was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .source import Source, is_named

PRIOR = Path(__file__).with_name("prior.json")  # benchmarks/fit_prior.py writes it
SAMPLED_PRIOR = PRIOR.with_name("prior_sampled.json")  # of samples whose noise is known


def prior_of(fitted: Mapping[str, Any], sources: Sequence[Source]) -> list[float]:
    """The probabilities that a file like that gives; 0 of a grade of tokens that are not named."""
    return [
        fitted[source.name][grade] if is_named(grade) else 0.0
        for source in sources
        for grade in source.fitted
    ]
