"""What a source of evidence is: it puts the tokens that may follow a draft node into grades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Look = tuple[int, dict[int, int]]  # grade of the tokens that are not named, {named token: grade}
Grades = Sequence[int]  # of a token by all sources, each as its place in the acceptance table
Candidates = tuple[Grades, Mapping[int, Grades]]  # a look of all sources


class Source:
    """One kind of evidence.

    Attributes:
        name: of the source.
        grades: what each grade means, in order.
        fitted: which of the grades that the prior was fitted for stands for each.
        first: the place of its first grade in the acceptance table, which holds those of all.
    """

    name: str
    grades: tuple[str, ...]
    fitted: tuple[str, ...]
    first: int = 0

    def grade(self, place: int) -> str:
        """What the grade at a place of the acceptance table means."""
        return self.grades[place - self.first]

    def names(self, place: int) -> bool:
        """Whether the source names the tokens of the grade at a place."""
        return is_named(self.grade(place))

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
        """
        raise NotImplementedError


def is_named(grade: str) -> bool:
    """Whether a source names the tokens of a grade: the grades of others begin with "no"."""
    return not grade.startswith("no")
