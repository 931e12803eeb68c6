"""From published files to data/NAME/question.jsonl and answers.jsonl, for data.prepare."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluation.asking.questions import load_questions
from evaluation.command.files import whole_file
from model.logitspec.errors import InputError

from .fetching import DATA, obtain
from .sets import SETS, QuestionSet

Row = dict[str, Any]


def prepare_questions(
    name: str, local: Path | None = None, data: Path = DATA, *, plain: bool = False
) -> Path:
    """Make data/NAME/question.jsonl, or data/NAME-plain/question.jsonl with the bare problems.

    Args:
        local: a directory that holds the set's source files, instead of the network.

    Raises:
        InputError: a source cannot be had, or other questions are in the way.
    """
    wanted = SETS[name]
    if plain and not wanted.plain:
        raise InputError(f"{name} is asked in one way only; leave out --plain")
    sources = {part.file: obtain(part.file, local, data) for part in wanted.parts}
    target = data / (f"{name}-plain" if plain else name) / "question.jsonl"
    if target in sources.values():
        return target
    write_once(target, b"".join(question_lines(wanted, sources, plain=plain)))
    return target


def write_once(target: Path, content: bytes) -> None:
    """Write a file, unless it is there; InputError if another is."""
    if target.exists():
        if target.read_bytes() != content:
            raise InputError(
                f"{target} exists and is not what this command writes; move it away first"
            )
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as file:
        file.write(content)


def question_lines(
    wanted: QuestionSet, sources: dict[str, Path], *, plain: bool
) -> Iterator[bytes]:
    """The lines of a set's question file."""
    count = 0
    for part in wanted.parts:
        content = unpacked(sources[part.file], part.member)
        for line in content.splitlines(keepends=True):
            row = json.loads(line)
            if not part.prompt:  # a question as it is asked
                if not wanted.only or row["category"] in wanted.only:
                    yield line
                continue
            count += 1
            prompt = filled(wanted.plain if plain else part.prompt, row)
            question: Row = {"question_id": count, "category": part.category, "turns": [prompt]}
            if wanted.answer:
                question["answer"] = row[wanted.answer]
            if wanted.reference:
                texts = row[wanted.reference]
                question["reference"] = texts if isinstance(texts, list) else [texts]
            yield as_line(question)


def as_line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def filled(prompt: str, row: Row) -> str:
    """A prompt with the row's fields for its {field}s; the first text of a list."""

    def text(found: re.Match[str]) -> str:
        value = row[found[1]]
        return str(value[0] if isinstance(value, list) else value)

    return re.sub(r"\{(\w+)\}", text, prompt)


def unpacked(path: Path, member: str = "") -> bytes:
    """The content of a file, of a .gz file, or of an archive's member."""
    if member:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def prepare_answers(name: str, questions: Path, local: Path | None = None) -> None:
    """Make answers.jsonl beside a set's question file, for evaluation.score; errors as for that."""
    key = SETS[name].key
    if key is None:
        return
    rows = read_rows(obtain(key.file, local, questions.parents[1]))
    asked = load_questions(questions)
    if key.question:
        by_text = {letters(row[key.question]): row for row in rows}
        found = [asked_last(letters(question.turns[0]), by_text) for question in asked]
    else:
        found = [*rows]
    lines = [
        as_line({"question_id": question.question_id} | {field: row[field] for field in key.fields})
        for question, row in zip(asked, found, strict=True)
        if row is not None
    ]
    write_once(questions.with_name("answers.jsonl"), b"".join(lines))


def read_rows(path: Path) -> list[Row]:
    """The rows of a .jsonl file, or of a .tsv file of questions and answers."""
    lines = [line for line in unpacked(path).splitlines() if line.strip()]
    if path.suffix != ".tsv":
        return [json.loads(line) for line in lines]
    cells = [line.decode().split("\t") for line in lines]
    return [{"question": question, "answer": answer} for question, answer in cells]


def letters(text: str) -> str:
    """A text's letters and digits, which copies of a question agree in."""
    return re.sub(r"\W+", "", text).lower()


def asked_last(asked: str, rows: dict[str, Row]) -> Row | None:
    """The row whose question begins last in a prompt: others may stand before it as examples."""
    place, _, text = max((asked.rfind(text), len(text), text) for text in rows)
    return rows[text] if place >= 0 else None
