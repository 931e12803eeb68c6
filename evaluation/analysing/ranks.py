"""Where the tokens after the next one stand in the logits that choose the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..pictures.style import DASHES, QUIET, new_figure
from ..recordings.format import Recording
from ..traces.reading import task_of
from .sections import Section

LISTED = (1, 2, 4, 8, 16, 32, 60)  # ranks up to which a table gives the share, 60 as in the paper
AHEAD = {1: "the token after the next", 2: "the one after that"}


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


def rank_section(recording: Recording, tasks: Sequence[str]) -> Section:
    listed = [rank for rank in LISTED if rank < recording.top_k]
    rows: list[Sequence[object]] = []
    figure = new_figure(9.6, 4.0)
    for axes, (ahead, what) in zip(figure.subplots(1, 2, sharey=True), AHEAD.items(), strict=True):
        for index, task in enumerate([*tasks, None]):
            shares = ranks(recording, ahead, task).shares[: LISTED[-1] + 1]
            name = task or "all tasks"
            rows.append((what, name, *(f"{shares[rank]:.3f}" for rank in listed)))
            kind = {"color": QUIET[index % len(QUIET)], "linestyle": DASHES[index % len(DASHES)]}
            axes.plot(shares, label=name, **kind if task else {"color": "black", "linewidth": 2.2})
        axes.set_xscale("symlog", base=2)
        axes.set_xticks([0, *LISTED], map(str, [0, *LISTED]))
        axes.set_xlabel("rank in the last logits")
        axes.set_title(f"share of {what} up to a rank", fontsize=9)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return Section(
        "ranks",
        "Do the logits that choose a token rank the tokens after it?",
        "Share of the tokens at a rank or above in the logits that chose the next token. Rank 0 is "
        "the chosen token itself. The two blocks would be alike if these logits only said which "
        "tokens are frequent.",
        ["", "task", *(f"≤ {rank}" for rank in listed)],
        rows,
        figure,
    )
