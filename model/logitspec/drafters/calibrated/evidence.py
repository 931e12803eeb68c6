"""What speaks for a token as the next one: the evidence that calibrated trees weigh.

Each source puts the tokens that may follow a draft node into grades. The acceptance table knows how
often a token of each grade was right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from ...listed import Numbers, answers_of, list_answers, list_rows, rows_of
from .source import Candidates, Look, Source

Row = Sequence[int]  # the best token ids after a token, best first
# n-gram -> token -> how often it followed, the latest last; of one that followed once: it
Followers = dict[tuple[int, ...], dict[int, int] | int]

GRADED_LENGTHS = 8  # of n-grams; longer ones have the grades of these
GRADED_RANKS = 16  # of a row; lower ones have the grade of the last
MOST_FOLLOWERS = 10  # of an n-gram, the latest; more would be guesses without weight
MOST_EARLIER = 1_000_000  # n-grams, or tokens, of earlier answers; with more they begin anew
MOST_ROWS = 1 << 16  # of a key; with more they are collected anew


class NgramEvidence(Source):
    """What followed the longest n-gram that ends at the node, earlier in prompt and answer.

    Of several answers to one prompt, the earlier ones count, too.

    Its grades tell the length of that n-gram, and a token's share among all that followed it.

    Args:
        max_ngram_size: longest n-gram matched.
    """

    name = "n-grams"
    SHARES = ("nothing", "up to 1/3", "up to 2/3", "most", "all, seen once", "all")
    FITTED_SIZE = 5

    def __init__(self, max_ngram_size: int) -> None:
        self.max_ngram_size = max_ngram_size
        self.lengths = min(max_ngram_size, GRADED_LENGTHS)
        self.grades = self._name_grades(self.lengths)
        self.fitted = self._name_grades(self.FITTED_SIZE)
        self.context: tuple[int, ...] = ()  # the last committed tokens, as many as a look takes
        self._followers: Followers = {}

    def _name_grades(self, fitted: int) -> tuple[str, ...]:
        sizes = [min(n, fitted) for n in range(1, self.lengths + 1)]
        shares = [f"{share} of what followed {n}" for n in sizes for share in self.SHARES]
        return ("no n-gram", *shares)

    def begin(self, prompt_ids: Sequence[int], *, again: bool = False) -> None:
        if again:
            self.context = tuple(prompt_ids[-max(self.max_ngram_size, 2) :])
            return
        self.forget()
        self.extend(prompt_ids)

    def forget(self) -> None:
        self.context = ()
        self._followers.clear()

    def __len__(self) -> int:
        """How many n-grams are known."""
        return len(self._followers)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the context."""
        followers, context, longest = self._followers, self.context, self.max_ngram_size
        for token in tokens:
            for n in range(1, min(len(context), longest) + 1):
                gram = context[-n:]
                known = followers.get(gram)
                if known is None:
                    followers[gram] = token
                    continue
                if isinstance(known, int):
                    known = followers[gram] = {known: 1}
                known[token] = known.pop(token, 0) + 1
            context = (*context, token)[-max(longest, 2) :]
        self.context = context

    def look(self, context: tuple[int, ...]) -> Look:
        followers = self._followers
        matched = 0
        found: dict[int, int] | int = 0
        for n in range(1, min(len(context), self.max_ngram_size) + 1):
            known = followers.get(context[-n:])
            if known is None:
                break
            matched, found = n, known
        if not matched:
            return 0, {}
        nothing = 1 + (min(matched, self.lengths) - 1) * len(self.SHARES)
        if isinstance(found, int):
            return nothing, {found: nothing + 4}
        if len(found) == 1:
            return nothing, dict.fromkeys(found, nothing + 5)
        total = sum(found.values())
        latest = list(found.items())[-MOST_FOLLOWERS:]
        return nothing, {
            token: nothing + (1 if 3 * times <= total else 2 if 3 * times <= 2 * total else 3)
            for token, times in latest
        }


class AnswerEvidence(NgramEvidence):
    """The same in the answers to earlier prompts.

    Args:
        keep: whether there is any: answers outlive their prompt.
    """

    name = "earlier answers"

    def __init__(self, max_ngram_size: int, *, keep: bool) -> None:
        self._answers: list[list[int]] = [[]]  # to the last prompt
        self._taken: list[list[int]] = []  # answers that the n-grams are of
        super().__init__(max_ngram_size)
        self.keep = keep

    def begin(self, prompt_ids: Sequence[int], *, again: bool = False) -> None:
        if again:
            self._answers.append([])
            return
        if max(len(self), sum(map(len, self._taken))) > MOST_EARLIER:
            self._followers.clear()
            self._taken.clear()
        if self.keep:
            self._take_in(self._answers)
        self._answers = [[]]

    def forget(self) -> None:
        super().forget()
        self._answers = [[]]
        self._taken.clear()

    def kept(self) -> Numbers:
        """All answers that are kept, see list_answers()."""
        return list_answers([*self._taken, *self._answers] if self.keep else [])

    def take(self, kept: Numbers) -> None:
        """Take in answers as kept() lists them."""
        self._take_in(answers_of(kept))

    def _take_in(self, answers: Iterable[list[int]]) -> None:
        for answer in answers:
            self.context = ()
            super().extend(answer)
            if answer:
                self._taken.append(answer)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the answer, which will be looked into from the next prompt on."""
        self._answers[-1] += tokens


class RowEvidence(Source):
    """Which tokens the target ranked best when it last stood at such a token: "copy logits".

    A row is looked up by the node's last two tokens, else by its last, else among the rows of
    earlier prompts.

    Args:
        width: tokens of a row that count.
        keep: whether rows outlive their prompt.
    """

    name = "rows"
    KINDS = ("two tokens", "one token", "an earlier prompt")
    FITTED_WIDTH = 8

    def __init__(self, width: int, *, keep: bool) -> None:
        self.width = width
        self.ranks = min(width, GRADED_RANKS)
        self.keep = keep
        self.grades = self._name_grades(self.ranks)
        self.fitted = self._name_grades(self.FITTED_WIDTH)
        last = self.ranks - 1
        self._by_rank = [
            [1 + kind * (self.ranks + 1) + min(rank, last) for rank in range(width)]
            for kind in range(len(self.KINDS))
        ]
        self._earlier: dict[int, Row] = {}
        self._single: dict[int, Row] = {}
        self.begin(())

    def begin(self, prompt_ids: Sequence[int], *, again: bool = False) -> None:
        if again:
            return
        if self.keep:
            self._earlier.update(self._single)
        self._single = {}
        self._pair: dict[tuple[int, ...], Row] = {}

    def _name_grades(self, fitted: int) -> tuple[str, ...]:
        ranks = [f"rank {min(rank, fitted - 1)}" for rank in range(self.ranks)]
        places = (*ranks, "not")
        return ("no row", *(f"{p} in the row of {kind}" for kind in self.KINDS for p in places))

    def forget(self) -> None:
        self._single = {}
        self._earlier.clear()
        self.begin(())

    def __len__(self) -> int:
        """How many rows are found by two tokens."""
        return len(self._pair)

    def kept(self) -> Numbers:
        """All rows that are kept, by ascending token: token, number of best tokens, these."""
        rows = {**self._earlier, **self._single} if self.keep else {}
        return list_rows({token: row[: self.width] for token, row in rows.items()})

    def take(self, kept: Numbers) -> None:
        """Take in rows as kept() lists them."""
        self._earlier.update(rows_of(kept))

    def learn(self, before: int, token: int, row: Row) -> None:
        """Note the target's best tokens after `token`, which came after `before`."""
        self._single[token] = row
        self._pair[before, token] = row

    def look(self, context: tuple[int, ...]) -> Look:
        token = context[-1]
        kind = 0
        row = self._pair.get(context[-2:])
        if row is None:
            kind = 1
            row = self._single.get(token)
            if row is None:
                kind = 2
                row = self._earlier.get(token)
                if row is None:
                    return 0, {}
        return (kind + 1) * (self.ranks + 1), dict(zip(row, self._by_rank[kind], strict=False))


class LastEvidence(Source):
    """Where a token stands in the last logits, which chose the root: below the root only.

    The paper's evidence: the logits that choose the next token also rank the next next one.

    Args:
        width: ranks that count.
    """

    name = "last logits"
    BINS = (2, 3, 5, 9, 17, 33)  # first ranks of the grades but the first

    def __init__(self, width: int) -> None:
        self.width = width
        ranks = [f"rank {first} or more" for first in (1, *self.BINS)]
        self.grades = self.fitted = ("not below the root", "none of the ranks", *ranks)
        self.by_rank = [2 + sum(rank >= first for first in self.BINS) for rank in range(width)]

    def below_root(self, root: int, top_ids: Sequence[int]) -> Look:
        """The same as look(), for the children of the root.

        Args:
            root: the token the last logits chose.
            top_ids: their best token ids, the root's first.
        """
        named = dict(zip(top_ids, self.by_rank, strict=False))
        named.pop(root, None)
        return 1, named


class Evidence:
    """All sources of one drafter.

    Args:
        max_ngram_size: longest n-gram matched.
        row_width: tokens of a row that count.
        last_width: ranks of the last logits that count.
        keep_rows: rows outlive their prompt.
        keep_ngrams: answers outlive their prompt.
        shared: what outlives its prompt is that evidence's, too.
    """

    def __init__(
        self, max_ngram_size: int, row_width: int, last_width: int, *,
        keep_rows: bool, keep_ngrams: bool, shared: Evidence | None = None,
    ) -> None:  # fmt: skip
        self.ngrams = NgramEvidence(max_ngram_size)
        self.rows = RowEvidence(row_width, keep=keep_rows)
        self.earlier = AnswerEvidence(max_ngram_size, keep=keep_ngrams)
        self.last = LastEvidence(last_width)
        self.sources = (self.ngrams, self.rows, self.earlier, self.last)
        counts = accumulate(len(source.grades) for source in self.sources)
        for source, count in zip(self.sources[1:], counts, strict=False):
            source.first = count
        self._firsts = [source.first for source in self.sources]  # grades where nothing is known
        if shared is not None:
            self.rows._earlier = shared.rows._earlier
            self.earlier._followers = shared.earlier._followers
            self.earlier._taken = shared.earlier._taken
        self.longest = max(max_ngram_size, 2)  # tokens of a context that a look takes
        self._prompt: list[int] = []

    @property
    def context(self) -> tuple[int, ...]:
        """The last committed tokens, as many as a look takes."""
        return self.ngrams.context

    def begin(self, prompt_ids: Sequence[int]) -> bool:
        """Forget the last prompt but for what is kept, and take in another.

        Returns:
            Whether it is the last one again, so that the rows are all kept.
        """
        again = len(prompt_ids) > 0 and [*prompt_ids] == self._prompt
        self._prompt = [*prompt_ids]
        ngrams_too = again and self.earlier.keep and len(self.ngrams) <= MOST_EARLIER
        rows_too = again and self.rows.keep and len(self.rows) <= MOST_ROWS
        for source in self.sources:
            source.begin(prompt_ids, again=rows_too if source is self.rows else ngrams_too)
        return rows_too

    def forget(self) -> None:
        """Drop what is kept from prompt to prompt, too."""
        self._prompt = []
        for source in self.sources:
            source.forget()

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in committed tokens."""
        self.ngrams.extend(tokens)
        self.earlier.extend(tokens)

    def look(self, context: tuple[int, ...], top_ids: Sequence[int] | None) -> Candidates:
        """The candidates below a draft node.

        Args:
            context: the last tokens up to the node, the node's own last.
            top_ids: below the root the best tokens of the last logits, else None.
        """
        looks = [source.look(context) for source in (self.ngrams, self.rows, self.earlier)]
        if top_ids is not None:
            looks.append(self.last.below_root(context[-1], top_ids))
        unnamed = [*self._firsts]
        for at, (grade, _) in enumerate(looks):
            unnamed[at] += grade
        found: dict[int, list[int]] = {}
        for at, (_, named) in enumerate(looks):
            for token, grade in named.items():
                if token not in found:
                    found[token] = [*unnamed]
                found[token][at] = self._firsts[at] + grade
        return unnamed, found
