"""Recordings of greedy runs: what replay.py computes accept lengths from, without the model.

A recording is a folder. `recording.meta.json` says how it was made, `step-cost.json` what a step
costs where it was made (model.logitspec.step_cost.StepCost, a list of it), `successors.npz` the
target's best tokens after each token of its vocabulary alone. Each question is a file of its own,
ID.npz, written at once when the question is done:

| array | shape | |
|---|---|---|
| `question` | string | JSON: question_id, category, number of turns |
| `prompt_N` | [P] int32 | token ids of turn N's prompt |
| `output_N` | [T] int32 | token ids of its answer, EOS included |
| `top_ids_N` | [P + T, k] int32 | best ids after each of these tokens, best first |
| `top_logprobs_N` | [P + T, k] float16 | their log-probabilities |
| `prefill_seconds_N` | float64 | of the prompt's forward |
| `max_new_tokens_N` | int64 | most tokens that the answer could have had |
| `node_at_N` | [m, 3] int32 | of nodes that a live run with draft trees rejected or accepted: the \
index of the node's token in prompt and output, the token before it, its own |
| `node_ids_N` | [m, w] int32 | best ids after these nodes |
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.logitspec.errors import InputError
from model.logitspec.step_cost import StepCost

from .traces import write_atomically

Ints = npt.NDArray[np.int32]
FORMAT = 1
META = "recording.meta.json"
STEP_COST = "step-cost.json"
SUCCESSORS = "successors.npz"


@dataclass
class RecordedTurn:
    """One prompt and its greedy answer; the arrays of the module's table."""

    prompt: Ints
    output: Ints
    top_ids: Ints
    top_logprobs: npt.NDArray[np.float16]
    prefill_seconds: float
    max_new_tokens: int
    node_at: Ints = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int32))
    node_ids: Ints = field(default_factory=lambda: np.zeros((0, 1), dtype=np.int32))


ARRAYS = {
    # name -> dtype, dimensions
    "prompt": (np.int32, 1),
    "output": (np.int32, 1),
    "top_ids": (np.int32, 2),
    "top_logprobs": (np.float16, 2),
    "node_at": (np.int32, 2),
    "node_ids": (np.int32, 2),
}


@dataclass
class RecordedQuestion:
    question_id: int | str
    category: str
    turns: list[RecordedTurn]


@dataclass
class Recording:
    """A whole recording.

    Attributes:
        top_k: recorded best tokens of each position.
        step_costs: by how many best tokens of every node a step reads.
    """

    path: Path
    settings: dict[str, Any]
    environments: list[dict[str, Any]]
    questions: list[RecordedQuestion]
    step_costs: dict[int, StepCost]
    rows: Ints

    @property
    def top_k(self) -> int:
        return int(self.settings["top_k"])

    @property
    def tokens(self) -> int:
        return sum(len(turn.output) for q in self.questions for turn in q.turns)

    def step_cost(self, top_k: int, node_top_k: int = 0) -> StepCost:
        """As LlamaKVForCausalLM.step_cost: of the recorded curves the one made most alike."""
        return self.step_costs[min(self.step_costs, key=lambda known: abs(known - node_top_k))]

    def successors(self, count: int, width: int) -> list[list[int]]:
        """As LlamaKVForCausalLM.successors, as far as they are recorded."""
        if self.rows.shape[1] < width or len(self.rows) < min(count, self.settings["vocab_size"]):
            raise InputError(
                f"{self.path} holds the {self.rows.shape[1]} best tokens after each of "
                f"{len(self.rows)} tokens of the vocabulary, {width} after each of {count} are "
                "wanted; record with more (--vocabulary-rows) or ask for fewer"
            )
        found: list[list[int]] = self.rows[:count, :width].tolist()
        return found


def question_file(folder: Path, question_id: int | str) -> Path:
    """Where a question is recorded; ids that are no plain file names are spelt out in bytes."""
    name = str(question_id)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        name = "x" + name.encode("utf-8", "backslashreplace").hex()[:200]
    return folder / f"{name}.npz"


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write a compressed npz, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                np.savez_compressed(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; make room and run again to go on"
        ) from error


def save_question(folder: Path, question: RecordedQuestion) -> None:
    about = {"question_id": question.question_id, "category": question.category}
    arrays: dict[str, Any] = {"question": json.dumps(about | {"turns": len(question.turns)})}
    for n, turn in enumerate(question.turns):
        for name, (dtype, _) in ARRAYS.items():
            arrays[f"{name}_{n}"] = getattr(turn, name).astype(dtype)
        arrays[f"prefill_seconds_{n}"] = turn.prefill_seconds
        arrays[f"max_new_tokens_{n}"] = turn.max_new_tokens
    save_arrays(question_file(folder, question.question_id), arrays)


def load_question(path: Path) -> RecordedQuestion:
    """One question of a recording.

    Raises:
        InputError: the file is torn, or is none.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["question"]))
            turns = []
            for n in range(int(about["turns"])):
                found: dict[str, Any] = {name: arrays[f"{name}_{n}"] for name in ARRAYS}
                for name, (dtype, dimensions) in ARRAYS.items():
                    if found[name].dtype != dtype or found[name].ndim != dimensions:
                        raise ValueError(f"{name}_{n} is {found[name].dtype}{found[name].shape}")
                turn = RecordedTurn(
                    prefill_seconds=float(arrays[f"prefill_seconds_{n}"]),
                    max_new_tokens=int(arrays[f"max_new_tokens_{n}"]),
                    **found,
                )
                check_turn(turn)
                turns.append(turn)
            return RecordedQuestion(about["question_id"], str(about["category"]), turns)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is no whole recording of a question ({error}); "
            "delete it and record again, the others are kept"
        ) from error


def check_turn(turn: RecordedTurn) -> None:
    """Raise ValueError unless the arrays fit together."""
    positions = len(turn.prompt) + len(turn.output)
    if not len(turn.prompt) or not len(turn.output):
        raise ValueError("an empty prompt or answer")
    if len(turn.top_ids) != positions or turn.top_logprobs.shape != turn.top_ids.shape:
        raise ValueError(f"{len(turn.top_ids)} rows of best tokens for {positions} tokens")
    if turn.node_at.shape != (len(turn.node_ids), 3):
        raise ValueError("nodes without rows")
    if len(turn.output) > turn.max_new_tokens:
        raise ValueError("a longer answer than was allowed")
    answers = turn.top_ids[len(turn.prompt) - 1 : -1, 0]
    if not np.array_equal(answers, turn.output):
        raise ValueError("the answer is not what its best tokens say")


def read_meta(folder: Path) -> dict[str, Any]:
    """How a recording was made.

    Raises:
        InputError: there is none, or one of another format.
    """
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        found = meta["settings"]["format"]
        meta["settings"]["top_k"], meta["settings"]["vocab_size"], meta["environments"][0]
    except OSError as error:
        raise InputError(
            f"no recording in {folder}: cannot read {META} ({error.strerror}); "
            "python -m evaluation.record makes one"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} does not say how the recording was made; record anew") from error
    if found != FORMAT:
        raise InputError(f"{path} is of format {found}, this version reads {FORMAT}; record anew")
    return dict(meta)


def load_recording(folder: Path, stride: int = 1) -> Recording:
    """A recording, all of it in memory.

    Args:
        folder: that holds it.
        stride: take only every so many-th question.

    Raises:
        InputError: there is none, or part of it is missing or torn.
    """
    meta = read_meta(folder)
    files = sorted(folder.glob("*.npz"))
    questions = [load_question(path) for path in files if path.name != SUCCESSORS]
    if not questions:
        raise InputError(f"the recording {folder} holds no question yet; record some")
    for question in questions:
        for turn in question.turns:
            if turn.top_ids.shape[1] != meta["settings"]["top_k"]:
                raise InputError(
                    f"{question_file(folder, question.question_id)} holds "
                    f"{turn.top_ids.shape[1]} best tokens, the recording "
                    f"{meta['settings']['top_k']}; delete the file and record again"
                )
    order = {question_id: at for at, question_id in enumerate(meta["settings"]["question_ids"])}
    questions.sort(key=lambda question: order.get(question.question_id, len(order)))
    try:
        with np.load(folder / SUCCESSORS, allow_pickle=False) as arrays:
            rows = arrays["rows"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder / SUCCESSORS} cannot be read ({error}); record again") from error
    return Recording(
        folder, meta["settings"], meta["environments"], questions[::stride],
        load_step_costs(folder / STEP_COST), rows,
    )  # fmt: skip


def save_step_costs(path: Path, costs: Mapping[int, StepCost]) -> None:
    content = {"curves": [{"node_top_k": k, **asdict(cost)} for k, cost in costs.items()]}
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; make room, go on") from error


def load_step_costs(path: Path) -> dict[int, StepCost]:
    """The curves of a file like step-cost.json, by node_top_k.

    Raises:
        InputError: no such file, or no curves in it.
    """
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
            if not rising or len(cost.seconds) != 2 or cost.nodes[0] != 1:
                raise ValueError(
                    "two rising contexts, rising nodes from 1, a line for each context"
                )
            curves[int(curve.get("node_top_k", 0))] = cost
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
    if not isinstance(values, list) or len(values) != (len(values) if count is None else count):
        raise ValueError(f"{values!r} is no list of {count or 'some'} numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{value!r} is no positive number")
    return values
