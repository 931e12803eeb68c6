"""A suffix automaton of a text that grows: where the longest suffix of it occurred first.

The drafters sam and sam_recycling copy what followed there.

Source: Blumer et al., The smallest automaton recognizing the subwords of a text, Theoretical
Computer Science 40, 1985; as Hu et al., arXiv 2411.10666, use it for drafting.
"""

from __future__ import annotations

from collections.abc import Sequence


class SuffixAutomaton:
    """All substrings of a text, by states: those in a state end at the same places of the text.

    State 0 is the empty substring's. Appending a token takes constant time on average, but for the
    transitions that are copied where a state is split.

    Attributes:
        ids: the text.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._next: list[dict[int, int]] = [{}]  # of each state: token -> state
        self._length = [0]  # of its longest substring
        self._link = [-1]  # the state of its longest suffix that ends at more places
        self._end = [0]  # tokens up to the first place where it ends
        self._last = 0  # the state of the whole text

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            self.ids.append(token)
            self._append(token)

    def _append(self, token: int) -> None:
        text = self._new_state({}, len(self.ids), 0, len(self.ids))
        state = self._last
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = text
            state = self._link[state]
        if state >= 0:
            known = self._next[state][token]
            if self._length[known] > self._length[state] + 1:
                known = self._split(known, state, token)
            self._link[text] = known
        self._last = text

    def _split(self, known: int, state: int, token: int) -> int:
        """A new state for those substrings of `known` that now end at one place more: the ones no
        longer than the longest of `state` and the token after it."""
        shorter = self._new_state(
            self._next[known].copy(), self._length[state] + 1, self._link[known], self._end[known]
        )
        while state >= 0 and self._next[state].get(token) == known:
            self._next[state][token] = shorter
            state = self._link[state]
        self._link[known] = shorter
        return shorter

    def _new_state(self, following: dict[int, int], length: int, link: int, end: int) -> int:
        self._next.append(following)
        self._length.append(length)
        self._link.append(link)
        self._end.append(end)
        return len(self._next) - 1

    def match(self, token: int) -> tuple[int, int]:
        """The longest suffix of text + [token] that occurs in the text: its state and length."""
        # The longest suffix of the text that occurred before: nothing longer can go on with a token
        state = max(0, self._link[self._last])
        length = self._length[state]
        while token not in self._next[state]:
            if not state:
                return 0, 0
            state = self._link[state]
            length = self._length[state]
        return self._next[state][token], length + 1

    def followed_by(self, state: int, count: int) -> int:
        """This state or, while fewer than `count` tokens come after its first place, the one of
        its suffix that has more places; but not state 0."""
        while len(self.ids) - self._end[state] < count and self._link[state] > 0:
            state = self._link[state]
        return state

    def continuation(self, state: int, count: int) -> list[int]:
        """At most `count` tokens that come after the first place of a state's substrings."""
        return self.ids[self._end[state] : self._end[state] + count]
