"""Files of recorded greedy runs, from which a replay computes accept lengths without the model.

A recording is a folder. `recording.meta.json` says how it was made, `step-cost.json` what a step
costs on that machine (costs.py). Each question has its own file, ID.npz, written when it is
answered:

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

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.logitspec.errors import InputError, brief
from model.logitspec.sizing.step_cost import StepCost

from ..command.files import whole_file, writing
from .costs import Kind, closest_curve, load_step_costs

Ints = npt.NDArray[np.int32]
FORMAT = 1
META = "recording.meta.json"
STEP_COST = "step-cost.json"
UNUSED = "successors.npz"  # what earlier versions recorded beside the questions


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
    # name: dtype, dimensions
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


@dataclass(eq=False)
class Recording:
    """A whole recording."""

    path: Path
    settings: dict[str, Any]
    environments: list[dict[str, Any]]
    questions: list[RecordedQuestion]
    step_costs: Mapping[Kind, StepCost]
    missing: int = 0  # questions that are not recorded yet

    @property
    def top_k(self) -> int:
        """Recorded best tokens of each position."""
        return int(self.settings["top_k"])

    @property
    def vocab_size(self) -> int:
        return int(self.settings["vocab_size"])

    @property
    def node_width(self) -> int:
        """Recorded best tokens per node off the answers; 0: no such nodes are recorded."""
        turns = (turn for question in self.questions for turn in question.turns)
        return max((t.node_ids.shape[1] for t in turns if len(t.node_ids)), default=0)

    @property
    def tokens(self) -> int:
        return sum(len(turn.output) for q in self.questions for turn in q.turns)

    @property
    def description(self) -> str:
        """The recording in a line."""
        unfinished = f" ({self.missing} not recorded yet)" if self.missing else ""
        return (
            f"{len(self.questions)} questions of {self.settings['bench_name']}{unfinished}, "
            f"{self.tokens} tokens, {self.settings['model']}, {self.settings['dtype']}"
        )

    def step_cost(self, top_k: int, node_top_k: int = 0) -> StepCost:
        """As MeasuredModel.step_cost, as far as it is recorded."""
        return closest_curve(self.step_costs, node_top_k, rejected=False)

    @property
    def unused(self) -> str | None:
        """A file that an earlier version recorded and nothing reads now."""
        return UNUSED if (self.path / UNUSED).is_file() else None


def question_file(folder: Path, question_id: int | str) -> Path:
    """The file of a question; ids that are no plain file names are hashed."""
    name = str(question_id)
    plain = re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name) and f"{name}.npz" != UNUSED
    if isinstance(question_id, str) and (not plain or name.lstrip("-").isdigit()):
        name = "x-" + hashlib.sha256(json.dumps(question_id).encode()).hexdigest()
    return folder / f"{name}.npz"


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write a compressed npz, whole or not at all; InputError if it cannot be written."""
    with writing(path, "make room and run again to go on"), whole_file(path) as file:
        np.savez_compressed(file, **arrays)


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
    """One question of a recording; InputError if the file is not whole, or of another form."""
    with read_arrays(path) as arrays:
        about = json.loads(str(arrays["question"]))
        turns = []
        for n in range(int(about["turns"])):
            found = {name: typed(arrays, f"{name}_{n}", *kind) for name, kind in ARRAYS.items()}
            turn = RecordedTurn(
                prefill_seconds=float(arrays[f"prefill_seconds_{n}"]),
                max_new_tokens=int(arrays[f"max_new_tokens_{n}"]),
                **found,
            )
            check_turn(turn)
            turns.append(turn)
        return RecordedQuestion(about["question_id"], str(about["category"]), turns)


@contextmanager
def read_arrays(path: Path) -> Iterator[Any]:
    """The arrays of an npz file; any error while they are read is an InputError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a broken file may raise anything
        raise InputError(
            f"{path} is not whole ({brief(error)}); "
            "delete it and record again, what is in other files is kept"
        ) from error


def typed(arrays: Mapping[str, Any], name: str, dtype: Any, dimensions: int) -> Any:
    """An array by its name; ValueError unless it has this dtype and number of dimensions."""
    array = arrays[name]
    if array.dtype != dtype or array.ndim != dimensions:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")
    return array


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
    """How a recording was made; InputError if there is none, or one of another format."""
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        found = meta["settings"]["format"]
        meta["settings"]["top_k"], meta["settings"]["vocab_size"], meta["environments"][0]
        meta["settings"]["question_ids"][0]
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


def load_recording(folder: Path, stride: int = 1, step_costs: Path | None = None) -> Recording:
    """A recording, or every `stride`-th question of it, all in memory.

    `step_costs`: a file of another machine's, instead of the recorded ones. InputError if there is
    no recording, or part of it is missing or incomplete.
    """
    meta = read_meta(folder)
    files = [path for path in sorted(folder.glob("*.npz")) if path.name != UNUSED]
    questions = [load_question(path) for path in files]
    if not questions:
        raise InputError(f"the recording {folder} holds no question yet; record some")
    settings = meta["settings"]
    order = {question_id: at for at, question_id in enumerate(settings["question_ids"])}
    for path, question in zip(files, questions, strict=True):
        problem = mismatch(question, settings, set(order))
        if path != question_file(folder, question.question_id):
            problem = f"has not the name of the question {question.question_id} that it answers"
        if problem is not None:
            raise InputError(
                f"{path} {problem}; it is of another recording: delete it and record again"
            )
    questions.sort(key=lambda question: order[question.question_id])
    return Recording(
        folder, settings, meta["environments"], questions[::stride],
        load_step_costs(step_costs or folder / STEP_COST), len(order) - len(questions),
    )  # fmt: skip


def mismatch(
    question: RecordedQuestion, settings: Mapping[str, Any], wanted: set[int | str]
) -> str | None:
    """Why a question cannot have been recorded with these settings; None: it can."""
    if question.question_id not in wanted:
        return f"answers question {question.question_id}, which the recording does not ask"
    for turn in question.turns:
        if turn.top_ids.shape[1] != settings["top_k"]:
            return f"holds {turn.top_ids.shape[1]} best tokens, not {settings['top_k']}"
        for ids in (turn.prompt, turn.output, turn.top_ids, turn.node_at[:, 1:], turn.node_ids):
            if ids.size and not 0 <= ids.min() <= ids.max() < settings["vocab_size"]:
                return f"holds token ids outside the vocabulary of {settings['vocab_size']}"
    return None
