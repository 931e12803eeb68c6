"""Every method by name: the registered drafters, and transformers' own generate().

A drafter's flags are the keyword arguments of its __init__ that its `options` explain, with their
defaults there.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from model.logitspec import DRAFTERS, Drafter
from model.logitspec.errors import InputError, brief

from ..command.parser import Parser, at_least
from .engines import Engine, HFEngine, KVEngine, Models

Options = dict[str, Any]

CAPACITY = "draft_tree_capacity"
LARGEST = 4096  # no option counts more nodes or tokens than this, but for stores


@dataclass(frozen=True)
class Option:
    """A keyword argument of a method, and its flag."""

    name: str
    default: Any  # None: there is none, and the method needs a value
    help: str
    annotation: str = ""

    def takes(self, value: Any) -> bool:
        """Whether the method accepts a value of the flag, which several methods share."""
        return self.name != CAPACITY or value != "auto" or self.annotation == "Capacity"

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def option_type(option: Option) -> Any:
    """The argparse type of an option."""
    by_name = {"trie_nodes": at_least(1), "max_hits": at_least(1), CAPACITY: capacity}
    if option.name in by_name:
        return by_name[option.name]
    if option.default is None:  # its annotation says what it takes
        kinds = {"int": at_least(1, LARGEST), "float": not_negative}
        return next((kind for name, kind in kinds.items() if name in option.annotation), str)
    return {str: str, int: at_least(1, LARGEST)}.get(type(option.default), not_negative)


def capacity(text: str) -> int | str:
    """An argparse type: a number of nodes, or auto."""
    return text if text == "auto" else at_least(1, LARGEST)(text)


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
    own_loop = True  # whether it runs in this project's loop and model class

    def settings(self, given: Mapping[str, Any]) -> Options:
        """All options of the method: the given values that it takes, defaults for the others."""
        settings = {option.name: option.default for option in self.options}
        taken = [o.name for o in self.options if o.name in given and o.takes(given[o.name])]
        return settings | {name: given[name] for name in taken}

    def check(self, options: Options, tokenizer: str | None = None) -> None:  # noqa: B027
        """Raise InputError if the method cannot run with these options; nothing is loaded.

        `tokenizer`: the fingerprint of the target's; None: not known.
        """

    def drafts_from(self, options: Options) -> str | None:
        """The checksum of a file that the method drafts from; None: there is none."""
        return None

    @property
    def takes_evidence(self) -> bool:
        """Whether the method can begin with what others learnt, or with answers."""
        return False

    @abstractmethod
    def engine(self, models: Models, options: Options) -> Engine:
        """Load the weights and return an engine that is ready to decode."""


class DrafterMethod(Method):
    """A drafter in our loop; `capacity` is that of its draft tree, None leaves it an option."""

    def __init__(self, drafter: type[Drafter], capacity: int | str | None = None) -> None:
        self.drafter = drafter
        self.capacity = capacity
        self.name = drafter.name if capacity is None else f"{drafter.name}@{capacity}"
        self.summary = (inspect.getdoc(drafter) or "").partition("\n")[0]
        arguments = inspect.signature(drafter).parameters
        self.options = tuple(
            Option(name, arguments[name].default, text, str(arguments[name].annotation))
            for name, text in drafter.options.items()
        )

    def settings(self, given: Mapping[str, Any]) -> Options:
        fixed = {} if self.capacity is None else {CAPACITY: self.capacity}
        return super().settings({**given, **fixed})

    def check(self, options: Options, tokenizer: str | None = None) -> None:
        check_tokenizer(self.drafter(**options), tokenizer)

    def drafts_from(self, options: Options) -> str | None:
        return self.drafter(**options).drafts_from

    @property
    def takes_evidence(self) -> bool:
        return self.drafter.warm is not Drafter.warm

    def engine(self, models: Models, options: Options) -> Engine:
        return KVEngine(models, self.drafter(**options))


@dataclass
class HFMethod(Method):
    """transformers' generate()."""

    name: str
    summary: str
    options: tuple[Option, ...] = ()
    own_loop = False

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


FROM_FILE = "drafter_in_"  # begins the names of modules loaded from users' files


@cache
def drafter_from_file(name: str) -> DrafterMethod:
    """The drafter of FILE.py:CLASS; the file is executed. InputError if there is no drafter."""
    file, _, class_name = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{name!r}: there is no file {file}; write FILE.py:CLASS")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    spec = spec_from_file_location(f"{FROM_FILE}{path.stem}_{digest}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{name!r}: {file} is no Python file")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file may raise anything
        raise InputError(f"{file} does not run: {brief(error)}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not issubclass(found, Drafter):
        raise InputError(f"{name!r}: {file} has no subclass of Drafter named {class_name!r}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise InputError(f"{name!r}: {class_name} does not define {missing}")
    if "name" not in vars(found):
        found.name = class_name
    arguments = inspect.signature(found).parameters
    if not isinstance(found.options, Mapping):
        raise InputError(f"{name!r}: options of {class_name} is no dict of names and helps")
    for option in found.options:
        if option not in arguments:
            raise InputError(
                f"{name!r}: the option {option!r} of {class_name} is no argument of its __init__"
            )
    for argument in arguments.values():
        if argument.default is argument.empty and argument.kind is argument.POSITIONAL_OR_KEYWORD:
            raise InputError(
                f"{name!r}: the argument {argument.name!r} of {class_name}.__init__ has no default"
            )
    return DrafterMethod(found)


def find_method(name: str) -> Method:
    """A method by name; NAME@16 and NAME@auto are the method with that draft-tree capacity.

    FILE.py:CLASS is a drafter in a file of the user's. InputError if there is none.
    """
    plain, sized, size = name.rpartition("@")
    if not sized or ":" in size:
        plain, sized, size = name, "", ""
    method: Method
    if ".py:" in plain:
        method = drafter_from_file(plain)
    elif plain in METHODS:
        method = METHODS[plain]
    else:
        raise InputError(
            f"no method {plain!r}; there are {', '.join(METHODS)}, and FILE.py:CLASS is your own"
        )
    if not sized:
        return method
    option = next((option for option in method.options if option.name == CAPACITY), None)
    if option is None or not isinstance(method, DrafterMethod):
        raise InputError(f"{name!r}: {plain} has no draft-tree capacity; leave @{size} out")
    try:
        nodes = capacity(size)
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{name!r}: the capacity {error}") from error
    if not option.takes(nodes):
        raise InputError(f"{name!r}: {plain} cannot size its trees itself; give a number of nodes")
    return DrafterMethod(method.drafter, nodes)


def find_methods(text: str) -> dict[str, Method]:
    """The methods of a list like pld,logitspec@16,my.py:Mine, by these words.

    InputError if it is empty, names what is not there, or two methods of one name.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    methods = [find_method(word) for word in words]
    names = [method.name for method in methods]
    if not methods:
        raise InputError(f"--methods {text!r} names none; give at least one of --list")
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"--methods {text!r} names {name} twice; give each method once, and classes of "
                "your own different names"
            )
    return dict(zip(words, methods, strict=True))


def add_options(parser: Parser, *methods: Method) -> None:
    """Add the flags of some methods; a flag that is not given has no name in the namespace.

    A flag of several methods is added once, and its help describes it for each.
    """
    sharing: dict[str, dict[str, Option]] = {}
    for method in methods:
        for option in method.options:
            sharing.setdefault(option.name, {})[method.name] = option
    for by_method in sharing.values():
        texts: dict[str, list[str]] = {}
        for owner, option in by_method.items():
            default = "none" if option.default is None else str(option.default)
            said = f"{owner} {default}" if len(methods) > 1 else default
            texts.setdefault(option.help, []).append(said)
        text = "; ".join(f"{help_} (default: {', '.join(d)})" for help_, d in texts.items())
        kind: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        option = next(iter(by_method.values()))
        if isinstance(option.default, bool):
            kind["action"] = "store_true"
        else:
            kind["type"] = option_type(option)
        parser.add_argument(option.flag, **kind)


def check_tokenizer(drafter: Drafter, tokenizer: str | None) -> None:
    """Raise InputError if a drafter's token ids are not those of the target's tokenizer."""
    if tokenizer is not None and drafter.tokenizer not in (None, tokenizer):
        raise InputError(
            f"what the method {drafter.name} drafts from was built with another tokenizer than "
            "the model's; build it anew with this model's --model-path"
        )


def drafter_method(name: str) -> DrafterMethod:
    """The drafter of this name; InputError if there is none."""
    method = find_method(name)
    if not isinstance(method, DrafterMethod):
        raise InputError(f"{name!r} is transformers' own loop and has no drafter; give another")
    return method


def find_drafter(name: str) -> Drafter:
    """A drafter by its method's name, with the method's default options; InputError if none."""
    method = drafter_method(name)
    return method.drafter(**method.settings({}))
