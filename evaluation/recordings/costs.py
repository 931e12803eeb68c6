"""Files of step costs: seconds of a step by its number of nodes, measured during a run.

{"made": {…}, "rounds": R, "curves": [{"node_top_k": K, "rejected": B, and StepCost's fields}]}

`made` identifies model and machine. Each curve times steps that read the K best tokens per node;
`rejected`: no draft was accepted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.logitspec import LlamaKVForCausalLM
from model.logitspec.errors import InputError
from model.logitspec.sizing.measuring import Meter
from model.logitspec.sizing.step_cost import StepCost

from ..command.files import write_atomically, writing

METER_EVERY = 8  # questions between two measurements, since machines drift
LAST_ROUNDS = 4  # when all is recorded
METER_SECONDS = 1.5  # that one takes at most, of each kind
ROW_WIDTH = 16  # best tokens per node in steps that read every node's
Kind = tuple[int, bool]  # best tokens read per node; whether no draft is accepted
KINDS: tuple[Kind, ...] = ((0, False), (0, True), (ROW_WIDTH, False))


class StepCostFile:
    """A file of step costs that is kept up to date by measuring a little now and then.

    An earlier run's content stays until this one has measured as often. `top_k`: best tokens read
    of the logits that choose the next root; `identity`: model_and_machine().
    """

    def __init__(
        self, model: LlamaKVForCausalLM, path: Path, top_k: int, identity: Mapping[str, Any]
    ) -> None:
        self._path = path
        self._identity = identity
        self._meters = {
            (width, rejected): Meter(model, top_k, width, rejected=rejected)
            for width, rejected in KINDS
        }
        self.stored = measured_rounds(path, identity)
        self._rounds = 0

    def measure(self, rounds: int = 1) -> None:
        """Measure every size so many times, or as far as METER_SECONDS for each of them reach."""
        self._rounds += 1
        for meter in self._meters.values():
            meter.run(rounds * METER_SECONDS, rounds)
        if self._rounds >= self.stored:
            curves = [
                {"node_top_k": width, "rejected": rejected, **asdict(meter.cost)}
                for (width, rejected), meter in self._meters.items()
            ]
            content = {"made": self._identity, "rounds": self._rounds, "curves": curves}
            with writing(self._path, "make room, go on"):
                write_atomically(self._path, content)
            self.stored = self._rounds


def closest_curve(costs: Mapping[Kind, StepCost], node_top_k: int, *, rejected: bool) -> StepCost:
    """The curve of the most similar kind of step.

    Whether every node's logits are read at all makes more of a difference than how many are, and
    that more than whether a draft was accepted.
    """

    def unlikeness(kind: Kind) -> tuple[bool, int, bool]:
        width, after_rejection = kind
        read_differs = bool(width) is not bool(node_top_k)
        return read_differs, abs(width - node_top_k), after_rejection is not rejected

    return costs[min(costs, key=unlikeness)]


def model_and_machine(
    settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Model and machine that step costs belong to, from what a trace's sidecar holds."""
    known = {**environment, **settings}
    of_model, of_machine = ("model", "model_fingerprint", "dtype"), ("device_names", "threads")
    return {key: known[key] for key in (*of_model, *of_machine, "kernels", "cuda_graphs")}


def measured_rounds(path: Path, identity: Mapping[str, Any]) -> int:
    """Rounds in which the curves of a file were measured; 0 if there is no such file.

    InputError if it holds no step costs, or another model's or machine's.
    """
    if not path.is_file():
        return 0
    load_step_costs(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    before, rounds = content.get("made"), content.get("rounds")
    if not isinstance(rounds, int) or not isinstance(before, dict):
        raise InputError(
            f"{path} does not say how its step costs were made; choose another, or delete it"
        )
    for key, value in identity.items():
        if before.get(key) != value:
            raise InputError(
                f"{path} holds step costs with {key} {before.get(key)!r}, now it is {value!r}; "
                "choose another place for them"
            )
    return rounds


def load_step_costs(path: Path) -> dict[Kind, StepCost]:
    """The curves of a file in the format of step-cost.json; InputError if there are none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        curves = {}
        for curve in content["curves"]:
            cost = StepCost(
                contexts=positive(curve["contexts"], 2),
                nodes=positive(curve["nodes"]),
                seconds=[positive(line, len(curve["nodes"])) for line in curve["seconds"]],
                padded=bool(curve.get("padded", False)),
            )
            rising = all(sorted(set(x)) == list(x) for x in (cost.contexts, cost.nodes))
            whole = all(isinstance(n, int) for n in cost.nodes)
            if not (rising and whole) or len(cost.seconds) != 2 or cost.nodes[0] != 1:
                raise ValueError(
                    "two rising contexts, rising whole nodes from 1, a line for each context"
                )
            curves[int(curve.get("node_top_k", 0)), bool(curve.get("rejected"))] = cost
        if not curves:
            raise ValueError("none")
        return curves
    except OSError as error:
        raise InputError(f"cannot read the step costs {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds no step costs ({error}); docs/replay.md says what such a file holds"
        ) from error


def positive(values: Any, count: int | None = None) -> Sequence[Any]:
    """A list of positive numbers; ValueError otherwise."""
    if not isinstance(values, list) or (count is not None and len(values) != count):
        raise ValueError(f"{values!r} is no list of {count or 'some'} numbers")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ValueError(f"{value!r} is no positive number")
    return values
