"""What is believed of each cell of the acceptance table before anything was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any

from .evidence import Source

PRIOR = Path(__file__).with_name("prior.json")  # benchmarks/fit_prior.py writes it
SAMPLED_PRIOR = PRIOR.with_name("prior_sampled.json")  # of samples whose noise is known


def additive_prior(bias: float, weights: Iterable[Sequence[float]]) -> list[float]:
    """Probabilities of all cells whose log-odds are a sum: a weight for the grade in each source.

    Args:
        bias: added to every sum.
        weights: of each source, by grade; the first source's stride is 1.
    """
    odds = [bias]
    for source in weights:
        odds = [known + weight for weight in source for known in odds]
    return [1 / (1 + exp(-value)) for value in odds]


def prior_of(fitted: Mapping[str, Any], sources: Sequence[Source]) -> list[float]:
    """The prior of every cell that the weights of a file like that make up."""
    weights = [[fitted[source.name][grade] for grade in source.fitted] for source in sources]
    return additive_prior(fitted["bias"], weights)
