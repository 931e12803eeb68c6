"""The configurations of a sweep over a recording, and their replay in several processes."""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.logitspec.errors import InputError

from ..asking.methods import (
    CAPACITY,
    DrafterMethod,
    Method,
    Option,
    drafter_method,
    find_methods,
    option_type,
)
from .format import Recording, load_recording
from .replaying import Configuration, Summary, replay

MOST_CONFIGURATIONS = 10_000


def configurations(methods: str, grid: Mapping[str, Sequence[str]]) -> list[Configuration]:
    """Every method of a list with every combination of those grid options that it has.

    InputError if a method is unknown, no method has a key, or a value is not allowed.
    """
    found_methods = find_methods(methods)
    varied_by = {
        word: {o.name: parsed(o, grid[o.name]) for o in options_of(method) if o.name in grid}
        for word, method in found_methods.items()
    }
    for key in grid:
        if not any(key in varied for varied in varied_by.values()):
            known = sorted({o.name for m in found_methods.values() for o in options_of(m)})
            raise InputError(
                f"--grid: {methods} has no option {key!r}; "
                + (f"there are {', '.join(known)}" if known else "leave --grid out, there is none")
            )
    count = sum(math.prod(map(len, varied.values())) for varied in varied_by.values())
    if count > MOST_CONFIGURATIONS:
        raise InputError(
            f"--grid makes {count} configurations, more than {MOST_CONFIGURATIONS}; give less"
        )
    found = []
    for word, of_grid in varied_by.items():
        method = found_methods[word]
        drafter_method(word)
        for values in itertools.product(*of_grid.values()):
            varied = dict(zip(of_grid, values, strict=True))
            for option in method.options:
                if option.name in varied and not option.takes(varied[option.name]):
                    raise InputError(
                        f"--grid: {method.name} cannot do {option.name}=auto; leave it out"
                    )
            options = method.settings(varied)
            method.check(options)
            found.append(Configuration(word, tuple(options.items()), tuple(varied.items())))
    return found


def options_of(method: Method) -> list[Option]:
    """The options that a grid can vary; NAME@16 has a fixed capacity."""
    sized = isinstance(method, DrafterMethod) and method.capacity is not None
    return [option for option in method.options if not (sized and option.name == CAPACITY)]


def parsed(option: Any, texts: Sequence[str]) -> list[Any]:
    """Values of an option, parsed like its flag."""
    if isinstance(option.default, bool):
        words = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
        for text in texts:
            if text.lower() not in words:
                raise InputError(f"--grid: {option.name}={text} is neither true nor false")
        return [words[text.lower()] for text in texts]
    read = option_type(option)
    try:
        return [read(text) for text in texts]
    except argparse.ArgumentTypeError as error:
        raise InputError(f"--grid: {option.name}: {error}") from error


def parse_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of KEY=A,B,... words by key; InputError if one has another form."""
    grid: dict[str, list[str]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        key = key.replace("-", "_")
        listed = list(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
        if not equals or not listed:
            raise InputError(f"--grid {word!r} gives no values; write KEY=A,B,...")
        if key in grid:
            raise InputError(f"--grid names {key} twice; give all its values at once")
        grid[key] = listed
    return grid


# The recording of a worker process, loaded when the process starts.
loaded: dict[str, Recording] = {}


def start_worker(source: Source) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    loaded["recording"] = source.load()


def work(configuration: Configuration) -> Summary:
    return replay(loaded["recording"], configuration)


@dataclass(frozen=True)
class Source:
    """Where a recording is loaded from, in every process: load_recording's arguments."""

    recording: Path
    question_stride: int = 1
    step_cost: Path | None = None

    def load(self) -> Recording:
        """The recording; InputError as of load_recording()."""
        return load_recording(self.recording, self.question_stride, self.step_cost)


def replay_all(
    recording: Recording, source: Source, wanted: Sequence[Configuration], processes: int
) -> Iterator[tuple[int, Summary]]:
    """Summaries in the order they are finished, each with its index in `wanted`.

    One process replays `recording`; several load it from `source`. InputError if one dies.
    """
    if processes == 1 or len(wanted) == 1:
        for at, configuration in enumerate(wanted):
            yield at, replay(recording, configuration)
        return
    workers, context = min(processes, len(wanted)), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker, (source,)) as pool:
        places = {pool.submit(work, c): at for at, c in enumerate(wanted)}
        try:
            for future in as_completed(places):
                yield places[future], future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a process of the replay died, perhaps for want of memory; what it had done is "
                "above, try fewer --processes"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def usable_processors() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
