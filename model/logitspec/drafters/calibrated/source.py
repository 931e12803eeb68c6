"""What a source of evidence is: it puts the tokens that may follow a draft node into grades."""

from __future__ import annotations

from collections.abc import Sequence

# A cell is one number for the grades of all sources. A look gives
# (the cell of tokens that are not named, {token that is named: what is added to that cell}).
Look = tuple[int, dict[int, int]]
Candidates = Look  # the same of all sources together


class Source:
    """One kind of evidence. A token's part of its cell is its grade times `stride`.

    Attributes:
        name: of the source.
        grades: what each grade means, in order.
        fitted: which of the grades that the prior was fitted for stands for each.
        stride: what the next grade adds to a cell.
        first: where its grades begin in the acceptance table.
    """

    name: str
    grades: tuple[str, ...]
    fitted: tuple[str, ...]
    stride: int
    first: int = 0

    def place(self, cell: int) -> int:
        """Where the acceptance table knows the source's grade of the tokens of a cell."""
        return self.first + cell // self.stride % len(self.grades)

    def grade(self, cell: int) -> str:
        """What the source has to say of the tokens of a cell."""
        return self.grades[self.place(cell) - self.first]

    def names(self, cell: int) -> bool:
        """Whether the source names the tokens of a cell."""
        return is_named(self.grade(cell))

    def begin(self, prompt_ids: Sequence[int], *, again: bool = False) -> None:
        """Take in a prompt, and forget the last one but for what is kept.

        Args:
            prompt_ids: of the prompt.
            again: it is the last one, and what is known of that answer holds for the next one.
        """

    def forget(self) -> None:
        """Drop what is kept from prompt to prompt, too."""

    def look(self, context: tuple[int, ...]) -> Look:
        """What is known of the token after a draft node.

        Args:
            context: the last tokens up to the node, the node's own last.

        Returns:
            The part of the cell of every token that the source does not name, and for those it
            names what is to be added to that.
        """
        raise NotImplementedError


def is_named(grade: str) -> bool:
    """Whether a source names the tokens of a grade: the grades of others begin with "no"."""
    return not grade.startswith("no")
