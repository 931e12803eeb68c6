"""What the last logits know, and what LogitSpec makes of it: python -m evaluation.analyses --help.

From a recording (evaluation.record), without the model: ranks of the token after the next and of
the one after that, the method's three numbers one at a time, and the method without its parts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from model.logitspec import DraftTree, LogitSpecDrafter, VanillaDrafter
from model.logitspec.drafters.base import Drafter
from model.logitspec.errors import InputError

from .command.exits import run_command
from .command.files import make_folder, write_text
from .command.parser import Parser
from .pictures.style import line_style, new_figure, require_matplotlib, save_figure
from .recordings.format import Recording, load_recording
from .recordings.replaying import VANILLA, Configuration, Summary, replay, replay_drafter
from .recordings.sweeping import configurations
from .traces.reading import list_tasks, task_of

KNOBS = {
    "max_ngram_size": ("1", "2", "3", "4", "5"),
    "num_pred_tokens": ("5", "10", "20", "40"),
    "draft_tree_capacity": ("4", "8", "16", "24", "32", "48", "64"),
}
LISTED = (1, 2, 4, 8, 16, 32)  # ranks up to which a table gives the share
AHEAD = {1: "the token after the next", 2: "the one after that"}


class NextTokenOnly(LogitSpecDrafter):
    """LogitSpec without guesses: what is retrieved after the next token."""

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        return super().draft(root, ())


class LastLogitsOnly(LogitSpecDrafter):
    """LogitSpec without retrieval: the guesses alone."""

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        for guess in top_ids:
            if not tree.full and guess != root:
                tree.add(guess, 0)
        return tree


PARTS: Mapping[str, type[Drafter]] = {
    "neither (one node)": VanillaDrafter,
    "retrieval after the next token": NextTokenOnly,
    "guesses of the last logits": LastLogitsOnly,
    "both, and retrieval after guesses": LogitSpecDrafter,
}


@dataclass
class Ranks:
    """Where tokens stand in logits some steps older."""

    counts: npt.NDArray[np.int64]  # [top_k + 1], of each rank; the last: beyond what is recorded

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """[top_k], of the tokens that stand at a rank or above."""
        return np.asarray(self.counts[:-1].cumsum() / max(1, self.counts.sum()))


def ranks(recording: Recording, ahead: int, task: str | None = None) -> Ranks:
    """Ranks, in the logits that choose a token, of the token `ahead` places after it.

    Rank 0 is the chosen token's own; a token that repeats it stands there.
    """
    counts = np.zeros(recording.top_k + 1, dtype=np.int64)
    for question in recording.questions:
        if task is not None and task_of(question.category) != task:
            continue
        for turn in question.turns:
            first = len(turn.prompt) - 1
            later = turn.output[ahead:]
            same = turn.top_ids[first : first + len(later)] == later[:, None]
            found = np.where(same.any(axis=1), same.argmax(axis=1), recording.top_k)
            counts += np.bincount(found, minlength=len(counts))
    return Ranks(counts)


def analyse(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    require_matplotlib()
    if args.output.suffix != ".md":
        raise InputError(f"--output {args.output} is no FILE.md; its pictures go into FILE")
    recording = load_recording(args.recording)
    tasks = list_tasks([{"category": q.category} for q in recording.questions])
    folder = args.output.with_suffix("")
    make_folder(folder)
    pages = [
        "# What the last logits know, and what LogitSpec makes of it",
        f"Written by `python -m evaluation.analyses` from a recording: {recording.description}. "
        "No model was run ([replay.md](replay.md)).",
        *rank_section(recording, tasks, folder),
        *knob_section(recording, folder),
        *part_section(recording, tasks),
    ]
    write_text(args.output, "\n\n".join(pages) + "\n")
    print(f"the page is in {args.output}, its pictures in {folder}")


def rank_section(recording: Recording, tasks: Sequence[str], folder: Path) -> list[str]:
    rows: list[Sequence[object]] = []
    figure = new_figure(9.6, 4.0)
    for axes, (ahead, what) in zip(figure.subplots(1, 2, sharey=True), AHEAD.items(), strict=True):
        for index, task in enumerate([None, *tasks]):
            shares = ranks(recording, ahead, task).shares
            name = task or "all tasks"
            rows.append((what, name, *(f"{shares[min(r, len(shares) - 1)]:.3f}" for r in LISTED)))
            axes.plot(shares, label=name, **line_style(index, len(tasks) + 1) | {"marker": None})
        axes.set_xscale("symlog", base=2)
        axes.set_xlabel("rank in the last logits")
        axes.set_title(f"share of {what} up to a rank", fontsize=9)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share")
    figure.axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, folder / "ranks.png")
    return [
        "## Do the logits that choose a token rank the tokens after it?",
        "Share of the tokens at a rank or above in the logits that chose the next token. Rank 0 is "
        "the chosen token itself. The two blocks would be alike if these logits only said which "
        "tokens are frequent.",
        markdown(["", "task", *(f"≤ {r}" for r in LISTED)], rows),
        f"![ranks]({folder.name}/ranks.png)",
    ]


def knob_section(recording: Recording, folder: Path) -> list[str]:
    figure = new_figure(10.5, 3.4)
    base = replay(recording, VANILLA)
    rows: list[Sequence[object]] = []
    for axes, (key, values) in zip(figure.subplots(1, len(KNOBS)), KNOBS.items(), strict=True):
        found = [
            replay(recording, configuration)
            for configuration in tqdm(configurations("logitspec", {key: values}), desc=key)
        ]
        speedups = [summary.speedup_over(base) for summary in found]
        axes.plot(values, [s.mats["overall"] for s in found], label="MAT", **line_style(0, 2))
        axes.plot(values, speedups, label="predicted speedup", **line_style(1, 2))
        axes.set_xlabel(key)
        axes.grid(alpha=0.3)
        for value, summary, gain in zip(values, found, speedups, strict=True):
            rows.append((key, value, f"{summary.mats['overall']:.3f}", f"{gain:.2f}"))
    figure.axes[0].legend(frameon=False)
    save_figure(figure, folder / "knobs.png")
    return [
        "## The three options, one at a time",
        "The other two options are at their defaults (3, 20, 64). The speedup over the one-node "
        "loop is predicted from the step costs of the machine that made the recording.",
        markdown(["option", "value", "MAT", "speedup"], rows),
        f"![knobs]({folder.name}/knobs.png)",
    ]


def part_section(recording: Recording, tasks: Sequence[str]) -> list[str]:
    rows: list[Sequence[object]] = []
    base: Summary | None = None
    for name, drafter in PARTS.items():
        summary = replay_drafter(recording, Configuration(name, (), ()), drafter())
        base = base or summary
        mats = [f"{summary.mats[task]:.2f}" for task in [*tasks, "overall"]]
        rows.append((name, *mats, f"{summary.mean_nodes:.1f}", f"{summary.speedup_over(base):.2f}"))
    return [
        "## The parts",
        "MAT by task, nodes per step and predicted speedup, at the paper's settings.",
        markdown(["drafts", *tasks, "MAT", "nodes", "speedup"], rows),
    ]


def markdown(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m evaluation.analyses", "The paper's analyses, from a recording.")
    add = parser.add_argument
    add("--recording", required=True, type=Path, metavar="DIR", help="made by evaluation.record")
    page = "the page; its pictures go into the folder FILE beside it"
    add("--output", required=True, type=Path, metavar="FILE.md", help=page)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: analyse(args), "interrupted; the page was not written")


if __name__ == "__main__":
    raise SystemExit(main())
