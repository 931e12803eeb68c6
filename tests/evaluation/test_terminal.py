"""Tables in the letters that the terminal has."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from evaluation.command.terminal import drawn


def test_a_table_is_drawn_in_the_letters_that_the_output_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = Table("method", "×")
    shown.add_row("a" * 150, "1")
    assert "━" in drawn(shown) and "×" in drawn(shown)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    text = drawn(shown)
    assert text.isascii() and "+----" in text and "a" * 150 in text
    monkeypatch.setattr("sys.stdout", None)
    assert "a" * 150 in drawn(shown)
