"""Every method by name: the registered drafters, and transformers' own generate().

Used by the inference scripts and run.py. A drafter's flags are the keyword arguments of its
__init__ that its `options` explain, with their defaults there.
"""

from __future__ import annotations

import argparse
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.logitspec import DRAFTERS, Drafter
from model.logitspec.errors import InputError

from .arguments import Parser, at_least
from .engines import Engine, HFEngine, KVEngine, Models

Options = dict[str, Any]

LARGEST = 4096  # no option counts more nodes or tokens than this, but for stores


@dataclass(frozen=True)
class Option:
    """A keyword argument of a method, and its flag."""

    name: str
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def option_type(name: str, default: Any) -> Any:
    """The argparse type of an option."""
    if name == "trie_nodes":
        return at_least(1)
    return at_least(1, LARGEST) if isinstance(default, int) else not_negative


def not_negative(text: str) -> float:
    """An argparse type: a number from 0 to LARGEST."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {LARGEST}")
    return value


class Method(ABC):
    """A way to decode, by name."""

    name: str
    summary: str  # one line
    options: tuple[Option, ...] = ()
    own_loop = True  # whether it runs in this project's loop, on its model class

    def settings(self, given: Mapping[str, Any]) -> Options:
        """All options of the method: those given, the others at their defaults."""
        return {option.name: given.get(option.name, option.default) for option in self.options}

    @abstractmethod
    def check(self, options: Options) -> None:
        """Raise InputError if the method cannot run with these options; loads nothing."""

    @abstractmethod
    def engine(self, models: Models, options: Options) -> Engine:
        """Ready to decode; loads the weights it needs."""


@dataclass
class DrafterMethod(Method):
    """A drafter in our loop."""

    drafter: type[Drafter]
    name: str = field(init=False)
    summary: str = field(init=False)
    options: tuple[Option, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.drafter.name
        self.summary = (inspect.getdoc(self.drafter) or "").partition("\n")[0]
        arguments = inspect.signature(self.drafter).parameters
        self.options = tuple(
            Option(name, arguments[name].default, text)
            for name, text in self.drafter.options.items()
        )

    def check(self, options: Options) -> None:
        self.drafter(**options)

    def engine(self, models: Models, options: Options) -> Engine:
        return KVEngine(models, self.drafter(**options))


@dataclass
class HFMethod(Method):
    """transformers' generate()."""

    name: str
    summary: str
    options: tuple[Option, ...] = ()
    own_loop = False

    def check(self, options: Options) -> None:
        pass

    def engine(self, models: Models, options: Options) -> Engine:
        return HFEngine(models, options.get("num_pred_tokens"))


METHODS: dict[str, Method] = {
    "baseline": HFMethod("baseline", "transformers' generate(), the paper's baseline."),
    "hf_pld": HFMethod(
        "hf_pld",
        "transformers' own prompt lookup: generate(prompt_lookup_num_tokens=...).",
        (Option("num_pred_tokens", 10, "how many tokens are copied"),),
    ),
} | {name: DrafterMethod(drafter) for name, drafter in DRAFTERS.items()}


def find_method(name: str) -> Method:
    """A method by name.

    Raises:
        InputError: there is none of this name.
    """
    if name not in METHODS:
        raise InputError(f"no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]


def add_options(parser: Parser, *methods: Method) -> None:
    """Add the flags of some methods; absent, they leave their names out of the namespace.

    A flag that several methods know is added once, and its help says what it is to each.
    """
    sharing: dict[str, dict[str, Option]] = {}
    for method in methods:
        for option in method.options:
            sharing.setdefault(option.name, {})[method.name] = option
    for name, by_method in sharing.items():
        texts: dict[str, list[str]] = {}
        for owner, option in by_method.items():
            said = f"{owner} {option.default}" if len(methods) > 1 else str(option.default)
            texts.setdefault(option.help, []).append(said)
        text = "; ".join(f"{help_} (default: {', '.join(d)})" for help_, d in texts.items())
        kind: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        option = next(iter(by_method.values()))
        if isinstance(option.default, bool):
            kind["action"] = "store_true"
        else:
            kind["type"] = option_type(name, option.default)
        parser.add_argument(option.flag, **kind)
