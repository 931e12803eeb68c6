"""The one exception the package raises for what a user asked and cannot have."""

from __future__ import annotations

from numbers import Integral


class InputError(ValueError):
    """Bad input: the message is one sentence naming the thing, its value and the way out."""


def require_positive(**numbers: int) -> None:
    """Raise InputError for the first of the named numbers that is no whole one, or below 1."""
    for name, value in numbers.items():
        if not is_whole(value) or value < 1:
            raise InputError(f"{name} is {value!r}; give 1 or more")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, numpy's included; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def brief(error: BaseException) -> str:
    """An exception in a line: its type and what it says first."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
