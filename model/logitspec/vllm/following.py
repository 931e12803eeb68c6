"""Which request is which, from step to step, and what became of its drafts.

vLLM's rows move when requests end, and a request that is preempted leaves the batch and comes back.
So requests are known by their ids where the runner shows them (logits.py), else by their tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from .logits import Seen

TAIL = 16  # last tokens by which a request is known again where ids are not shown
PATIENCE = 256  # steps after which such a request that was not seen again has ended


class Drafts(Protocol):
    """The drafts of a request: chains.Chain, or RetrievedChain."""

    def draft(self, root: int, top_ids: Sequence[int]) -> tuple[list[int], list[float]]: ...

    def observe(self, verified: int, accepted: int, top_ids: Sequence[Sequence[int]]) -> None: ...

    def skip(self, tokens: Sequence[int]) -> None: ...


class Followed:
    """A request.

    Attributes:
        count: of its tokens.
        root: the last of these.
        is_new: it was not there in the step before.
        missed: since the last step there were others that were not seen.
        paths: path probabilities of its last drafts.
        looked_at: how many drafts the last step verified, its own or not.
        verified: how many of its drafts the last step verified.
        accepted: how many of those were right.
    """

    def __init__(self, drafts: Drafts, count: int, root: int) -> None:
        self.drafts = drafts
        self.count = count
        self.root = root
        self.is_new, self.missed = True, False
        self.looked_at = self.verified = self.accepted = 0
        self.paths: list[float] = []
        self.last_step = 0
        self._best: Sequence[int] = ()  # tokens of the logits that chose the root
        self._drafted: list[int] | None = None  # None: nothing was looked for
        self._offered: list[int] = []  # to vLLM: the first of these, or all and more of no worth

    def draft(self, most: int) -> None:
        """Find at most so many drafts."""
        drafted, paths = self.drafts.draft(self.root, self._best)
        self._drafted, self.paths = drafted[:most], paths[:most]

    def offer(self, count: int) -> list[int]:
        """The first of the drafts, for vLLM to verify; where there are fewer, the last is repeated.

        Returns:
            [count] tokens.
        """
        drafted = (self._drafted or [])[:count]
        last = drafted[-1] if drafted else self.root
        self._offered = drafted + [last] * (count - len(drafted))
        return [*self._offered]

    def begin_with(self, best: Sequence[Sequence[int]]) -> None:
        """Take in the best tokens of the position that chose the root, the last one."""
        self._best = best[-1] if best else ()

    def advance(
        self, sampled: Sequence[int], between: Sequence[int], drafts: Sequence[int] | None,
        best: Sequence[Sequence[int]],
    ) -> None:  # fmt: skip
        """Go on by a step.

        Args:
            sampled: its tokens: drafts that were right, and one more.
            between: tokens that came in steps before it which were not seen.
            drafts: that it verified; None: not known, so those that were offered.
            best: of the tokens after the root and after each draft; empty: not known.
        """
        accepted = len(sampled) - 1
        if drafts is None:
            drafts = self._offered
        ours = self._drafted is not None and not between
        ours = ours and self._offered[: len(drafts)] == [*drafts]
        if ours and [*drafts[:accepted]] == [*sampled[:accepted]]:
            self.verified = min(len(drafts), len(self._drafted or ()))
            self.accepted = min(accepted, self.verified)
            known = best[: self.verified + 1] or [()] * (self.verified + 1)
            self.drafts.observe(self.verified, self.accepted, known)
            if accepted > self.accepted:  # repeated ones were right, too
                self.drafts.skip(sampled[self.accepted : -1])
        else:
            self.drafts.skip([self.root, *between, *sampled[:-1]])
            self.verified = self.accepted = 0
        self.count += len(between) + len(sampled)
        self.root = sampled[-1]
        self._best = best[accepted] if best else ()
        self._drafted, self._offered = None, []
        self.looked_at = max(len(drafts), accepted)
        self.is_new, self.missed = False, len(between) > 0


class Requests:
    """All requests that have not ended.

    Args:
        begin: makes the drafts of a request, given its tokens but the last one.
        end: takes leave of them.
    """

    def __init__(
        self, begin: Callable[[Sequence[int]], Drafts], end: Callable[[Any], None]
    ) -> None:
        self._begin, self._end = begin, end
        self._by_id: dict[str, Followed] = {}
        self._by_tail: defaultdict[tuple[int, ...], list[Followed]] = defaultdict(list)
        self._steps = 0

    def __len__(self) -> int:
        """How many are followed."""
        return len(self._by_id) + sum(map(len, self._by_tail.values()))

    def step(
        self, sampled: Sequence[Sequence[int]], counts: Any, ids: Any, seen: Seen | None
    ) -> list[Followed | None]:
        """Take in a step.

        Args:
            sampled: of each row, the tokens of the step; none while its prompt is read.
            counts: [rows] tokens of each, these included.
            ids: [rows, longest] these tokens.
            seen: the step as the runner shows it.

        Returns:
            The request of each row; None where a prompt is read.
        """
        self._steps += 1
        best: list[list[int]] = []
        draft_ids: list[int] = []
        if seen is not None:
            draft_ids = seen.draft_ids.tolist()
            best = [] if seen.best is None else [*map(without_padding, seen.best.tolist())]
        found: list[Followed | None] = []
        first = 0  # of its drafts
        for row, tokens in enumerate(sampled):
            count = int(counts[row])
            end = first + (0 if seen is None else seen.drafts[row])
            drafts = None if seen is None else draft_ids[first:end]
            own = best[first + row : end + row + 1]
            first = end
            if not len(tokens):
                found.append(None)
                continue
            request = self._find(row, tokens, count, ids, seen)
            if request is None:
                request = self._new(ids[row, : count - 1].tolist(), tokens[-1])
                # a row of a prompt that was just read, or of drafts that nobody remembers
                request.begin_with(own[: len(tokens)])
            else:
                between = ids[row, request.count : count - len(tokens)].tolist()
                request.advance(tokens, between, drafts, own)
            self._keep(request, row, ids, seen)
            found.append(request)
        self._forget(seen)
        return found

    def _new(self, ids: list[int], root: int) -> Followed:
        return Followed(self._begin(ids), len(ids) + 1, root)

    def _find(
        self, row: int, tokens: Sequence[int], count: int, ids: Any, seen: Seen | None
    ) -> Followed | None:
        """The request of a row, if it is known and has no fewer tokens than it had."""
        before = count - len(tokens)
        if seen is None:
            known = self._by_tail.get(tail(ids, row, before))
            return known.pop() if known else None
        request = self._by_id.pop(seen.requests[row], None)
        if request is None:
            return None
        if request.count <= before and int(ids[row, request.count - 1]) == request.root:
            return request
        self._end(request.drafts)  # some of its tokens were taken back
        return None

    def _keep(self, request: Followed, row: int, ids: Any, seen: Seen | None) -> None:
        request.last_step = self._steps
        if seen is None:
            self._by_tail[tail(ids, row, request.count)].append(request)
        else:
            self._by_id[seen.requests[row]] = request

    def _forget(self, seen: Seen | None) -> None:
        """Take leave of those that ended."""
        if seen is not None:
            self._leave(self._by_id.pop(i) for i in [*self._by_id] if i not in seen.alive)
        for key, known in [*self._by_tail.items()]:
            old = [r for r in known if r.last_step < self._steps - PATIENCE]
            self._leave(old)
            kept = [r for r in known if r not in old]
            if kept:
                self._by_tail[key] = kept
            else:
                del self._by_tail[key]

    def _leave(self, requests: Iterable[Followed]) -> None:
        for request in requests:
            self._end(request.drafts)


def without_padding(row: list[int]) -> list[int]:
    return row[: row.index(-1)] if row[-1] < 0 else row


def tail(ids: Any, row: int, count: int) -> tuple[int, ...]:
    """How many tokens a row has, and the last of them."""
    return count, *ids[row, max(0, count - TAIL) : count].tolist()
