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


@dataclass(frozen=True)
class Option:
    """A keyword argument of a method, and its flag."""

    name: str
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def add_to(self, parser: Parser, *, shown_default: Any) -> None:
        """Add the flag; absent, it leaves the name out of the namespace."""
        kind: dict[str, Any] = {"default": argparse.SUPPRESS, "help": self.help}
        kind["help"] += f" (default: {shown_default})"
        if isinstance(self.default, bool):
            kind["action"] = "store_true"
        else:
            kind["type"] = option_type(self.name, self.default)
        parser.add_argument(self.flag, **kind)


def option_type(name: str, default: Any) -> Any:
    """The argparse type of an option."""
    if name == "draft_tree_capacity":
        return at_least(1, 4096)
    return at_least(1) if isinstance(default, int) else not_negative


def not_negative(text: str) -> float:
    """An argparse type: a finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
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
    """Add the flags of some methods; a flag that several have is added once."""
    defaults: dict[str, dict[str, Any]] = {}
    texts: dict[str, Option] = {}
    for method in methods:
        for option in method.options:
            defaults.setdefault(option.name, {})[method.name] = option.default
            texts.setdefault(option.name, option)
    for name, by_method in defaults.items():
        option = texts[name]
        several = ", ".join(f"{m} {value}" for m, value in by_method.items())
        option.add_to(parser, shown_default=several if len(methods) > 1 else option.default)
