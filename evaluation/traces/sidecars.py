"""Sidecars: how traces were made, and what speaks against comparing two of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.logitspec.errors import InputError

from .reading import Record

# Settings of sampling that a sidecar holds only where they are on.
FILTERS = ("top_k", "top_p", "min_p", "repetition_penalty")
LATER = ("tokenizer_fingerprint",)  # settings that sidecars of older versions lack

# Settings that are equal in all traces of a comparison; the others are the methods' own.
COMMON = (
    "bench_name", "questions", "model", "model_fingerprint", "tokenizer_fingerprint", "template",
    "max_new_tokens", "temperature", *FILTERS, "dtype", "device", "num_gpus_per_model",
)  # fmt: skip
# The parts of a sidecar's environment that matter to a comparison.
ENVIRONMENT = (
    "device_names", "instruction_set", "threads", "workers", "kernels", "platform", "versions",
    "commit", "uncommitted_changes",
)  # fmt: skip


@dataclass
class Sidecar:
    """The content of NAME.meta.json for NAME.jsonl; empty if there is no such file."""

    settings: dict[str, Any] = field(default_factory=dict)
    environments: list[dict[str, Any]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # answers that were there when a run began
    restored: list[int] = field(default_factory=list)  # those after which the method's state was

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """The sidecar of a trace; InputError if it is there and broken."""
        place = meta_path(path)
        if not place.is_file():
            return cls()
        try:
            meta = json.loads(place.read_text(encoding="utf-8"))
            settings = dict.fromkeys((*LATER, *FILTERS)) | meta["settings"]
            for key in COMMON:
                settings[key]
            if not isinstance(settings["bench_name"], str):
                raise TypeError("bench_name is no text")
            environments = [known_environment({**given}) for given in meta["environments"]]
            starts, restored = (
                [int(start) for start in meta.get(key, ())] for key in ("starts", "restored")
            )
            return cls(settings, environments, starts, restored)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{place} does not say how the trace was made; delete it or run again"
            ) from error


def known_environment(given: Record) -> Record:
    """An environment cut to the keys of ENVIRONMENT; older versions lack some."""
    found = {key: given.get(key) for key in ENVIRONMENT} | {"workers": given.get("workers", 1)}
    for key, kind in (("versions", dict), ("device_names", list)):
        if not isinstance(found[key], kind):
            raise TypeError(f"{key} is no {kind.__name__}")
    found["device_names"] = [str(name) for name in given["device_names"]]
    found["commit"] = None if found["commit"] is None else str(found["commit"])
    return found


def doubts(sidecars: Mapping[str, Sidecar]) -> list[str]:
    """Why traces may not be comparable, in sentences; `sidecars` are by the traces' names."""
    said = []
    unknown = [name for name, sidecar in sidecars.items() if not sidecar.settings]
    if unknown:
        said.append(f"How {', '.join(unknown)} came about is not known: there is no sidecar.")
    known = {name: sidecar for name, sidecar in sidecars.items() if sidecar.settings}
    first, one = next(iter(known.items()), ("", Sidecar()))
    for name, other in known.items():
        said += [
            f"{key} is {one.settings.get(key)!r} in {first} and "
            f"{other.settings.get(key)!r} in {name}."
            for key in differing(one.settings, other.settings, COMMON)
        ]
    apart = differences([made_in for sidecar in known.values() for made_in in sidecar.environments])
    if apart:
        said.append(
            "The traces were not all made on one machine with one version of everything; they "
            f"differ in {', '.join(apart)}."
        )
    return said


def differences(environments: Sequence[Record]) -> list[str]:
    """What differs between environments: names of keys, and packages with differing versions."""
    apart = []
    for key in ENVIRONMENT:
        values: list[Any] = [environment.get(key) for environment in environments]
        if key == "instruction_set":  # older runs do not say it
            values = [value for value in values if value is not None]
        if all(value == values[0] for value in values):
            continue
        if key == "versions" and all(isinstance(value, dict) for value in values):
            names = sorted({name for value in values for name in value})
            several = [n for n in names if len({str(value.get(n)) for value in values}) > 1]
            apart.append(f"the versions of {', '.join(several)}")
        else:
            apart.append(key.replace("_", " "))
    return apart


def state_path(path: Path) -> Path:
    """Of what the method of a trace learnt."""
    return path.with_name(path.name.removesuffix(".jsonl") + ".state.npz")


def meta_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".jsonl") + ".meta.json")


def differing(before: Record, now: Record, keys: Iterable[str]) -> list[str]:
    """Which of these settings differ; those in LATER only if both have them."""
    found = [key for key in keys if before.get(key) != now.get(key)]
    return [key for key in found if not (key in LATER and None in (before.get(key), now.get(key)))]
