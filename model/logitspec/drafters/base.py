"""What every method implements, and the registry that finds a method by its name.

To add a method: one file beside this one with a registered subclass of Drafter, and its import in
__init__.py. The scripts of evaluation/ read its name, summary and flags off the class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeVar

from .. import origins
from ..draft_tree import DraftTree
from ..errors import InputError
from ..listed import Numbers
from ..sampling import Foresight
from ..sizing.step_cost import Measurable


class Drafter(ABC):
    """A way to propose a draft tree. One instance serves one generation at a time.

    decoding.decode() calls `reset` once with the prompt, then alternates `draft` and `observe`.
    A drafter sees tokens only: no tensor layout, no mask, no cache; but for `prepare`, where it may
    measure the target.

    The first line of a subclass's docstring is what `--list` says of it. Its __init__ takes keyword
    arguments with defaults; those that `options` explains become flags of the scripts.
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, str]] = {}  # keyword argument of __init__ -> help of its flag
    capacity: int = 1  # most nodes that draft() returns, root included
    top_k: int = 0  # how many of the last logits' best token ids draft() is to be given
    node_top_k: int = 0  # the same of every verified node's logits, for observe()
    prompt_top_k: int = 0  # the same of every prompt token's logits, for reset()
    wants_best: bool = True  # whether the step that is verified next is to find these best tokens
    wants_logprobs: bool = False  # whether observe() takes their log-probabilities, of samples
    live_only: ClassVar[bool] = False  # drafts what only the target says: no recording serves it
    drafts_from: str | None = None  # checksum of a file that it drafts from
    core: str | None = None  # which implementation drafts, where a method has several
    tokenizer: str | None = None  # fingerprint of the one whose ids it drafts; None: any

    def foresee(self, foresight: Foresight | None) -> None:  # noqa: B027 - most drafts are of likely tokens
        """Learn what is known of the samples of the next generation; decode() calls it before
        anything else.

        Args:
            foresight: the noise and the filters; None: nothing is drawn, or it cannot be known.
        """

    def prepare(self, target: Measurable) -> None:  # noqa: B027 - most methods need nothing
        """Find out about the target what the method has to know; decode() calls it first.

        Nothing is to be done for a target that equals the last one.

        Args:
            target: a loaded model as sizing.measuring.MeasuredModel, or a recording of one. What
                its step_cost() returns learns from the steps of the generations that follow.
        """

    @abstractmethod
    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        """Forget the previous generation, but for what the method says it keeps, and take in the
        prompt.

        Args:
            prompt_ids: token ids of the prompt.
            top_ids: after each prompt token, the `prompt_top_k` best token ids, best first.
        """

    @abstractmethod
    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        """Propose what may follow.

        Args:
            root: the next token, already chosen by the target; node 0 of the tree.
            top_ids: the `top_k` best token ids of the logits that chose root, best first; none if
                the last step was not to find them.
        """

    def observe(  # noqa: B027 - optional
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        """Learn from a verified tree.

        A drafter with wants_logprobs is given a fourth argument: the log-probabilities of top_ids.

        Args:
            tree: the last that was drafted.
            path: its committed nodes, the root's index first.
            top_ids: after each node, accepted or not, the `node_top_k` best token ids, best first;
                none where they are not known, as for nodes behind the end of the generation, for
                some rejected ones in a replay, or in steps that were not to find them.
        """

    def origins(self, tree: DraftTree) -> list[str]:
        """Where the nodes of the tree that was drafted last come from, for people to see: one of
        origins.ORIGINS for each, the root's first. Asked before observe()."""
        return [origins.NEXT, *[origins.RETRIEVED] * (len(tree) - 1)]

    def forget(self) -> None:  # noqa: B027 - most methods keep nothing
        """Drop what reset() keeps across generations: after this the drafter is as good as new."""

    def state(self) -> dict[str, Numbers]:
        """What forget() drops, in arrays by name: what restore() goes on from. Empty: nothing is
        kept, or it cannot be saved."""
        return {}

    def restore(self, state: Mapping[str, Numbers]) -> None:
        """Know what another drafter of this method knew.

        Args:
            state: from state(), perhaps of another process.

        Raises:
            InputError: it is none, or one of a drafter with other options.
        """
        raise InputError(f"the method {self.name} has no state that can be saved")

    def warm(self, state: Mapping[str, Numbers]) -> None:
        """Begin with what another drafter learnt, perhaps from other prompts, after forget(), too.

        What this one learns counts for more.

        Args:
            state: see restore(); arrays that it lacks are not begun with. `answers`, see
                listed.list_answers(), are those to other prompts.

        Raises:
            InputError: see restore().
        """
        raise InputError(f"the method {self.name} cannot begin with what others learnt")


DRAFTERS: dict[str, type[Drafter]] = {}
D = TypeVar("D", bound=type[Drafter])


def register(name: str) -> Callable[[D], D]:
    """Class decorator: make a drafter known by `name`, or fail if the name is taken."""

    def add(drafter: D) -> D:
        if name in DRAFTERS:
            raise ValueError(f"two drafters are named {name!r}")
        drafter.name = name
        DRAFTERS[name] = drafter
        return drafter

    return add
