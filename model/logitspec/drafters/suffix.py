"""SuffixDecoding (Oliaro et al., arXiv 2411.04975), on the authors' own suffix trees: the package
arctic-inference (extra `suffix`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..draft_tree import DraftTree
from ..errors import InputError, require_positive
from ..listed import Numbers, answers_of, are_answers, list_answers
from .base import Drafter, register

MOST_ANSWERS = 10_000  # kept to draft from, the oldest dropped first; so that memory is bounded


@register("suffix")
class SuffixDrafter(Drafter):
    """SuffixDecoding: the likeliest continuations in suffix trees of this and earlier answers.

    Every suffix of the context, root included, is looked up in the tree of this prompt and answer
    and in the one of all answers before; of all drafts found the one with most expected tokens is
    taken. A draft has no more nodes than `max_spec_factor` times its suffix's length, and none
    whose estimated path probability is below `min_token_prob`. Answers are kept across prompts.

    Args:
        draft_tree_capacity: most nodes of a draft tree, root included.
        max_tree_depth: longest suffix matched plus continuation, of the suffix trees.
        max_spec_factor: drafted tokens per token matched, the paper's alpha.
        min_token_prob: least estimated probability of a drafted token.
        chain: draft only the single likeliest continuation instead of a tree.

    Raises:
        InputError: arctic-inference is not installed, or a number makes no sense.
    """

    options: ClassVar[Mapping[str, str]] = {
        "draft_tree_capacity": "most nodes of a draft tree, root included",
        "max_tree_depth": "depth of the suffix trees: longest match and continuation together",
        "max_spec_factor": "drafted tokens per token matched, the paper's alpha",
        "min_token_prob": "least estimated probability of a drafted token",
        "chain": "draft one chain instead of a tree",
    }

    def __init__(
        self,
        draft_tree_capacity: int = 64,
        max_tree_depth: int = 64,
        max_spec_factor: float = 1.0,
        min_token_prob: float = 0.1,
        *,
        chain: bool = False,
    ) -> None:
        require_positive(draft_tree_capacity=draft_tree_capacity, max_tree_depth=max_tree_depth)
        for name, value in (
            ("max_spec_factor", max_spec_factor),
            ("min_token_prob", min_token_prob),
        ):
            if not value >= 0:
                raise InputError(f"{name} is {value}; give 0 or more")
        self.capacity = draft_tree_capacity
        self._max_tree_depth = max_tree_depth
        self._limits = {
            "max_spec_tokens": draft_tree_capacity - 1,
            "max_spec_factor": max_spec_factor,
            "min_token_prob": min_token_prob,
            "use_tree_spec": not chain,
        }
        self._context: list[int] = []  # the last max_tree_depth committed tokens
        self._answers: deque[list[int]] = deque(maxlen=MOST_ANSWERS)  # that the cache holds
        self._request = 0
        self._cache = self._new_cache()

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        if self._request in self._cache.active_requests:
            self._cache.stop_request(self._request)
        self._request += 1
        self._answers.append([])
        self._cache.start_request(self._request, list(prompt_ids))
        self._context = list(prompt_ids)[-self._max_tree_depth :]

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        if self.capacity > 1:
            draft = self._cache.speculate(self._request, [*self._context, root], **self._limits)
            for token, parent in zip(draft.token_ids, draft.parents, strict=True):
                tree.add(token, parent + 1)  # a parent of -1 is the root
        return tree

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        committed = [tree.tokens[node] for node in path]
        self._cache.add_active_response(self._request, committed)
        self._answers[-1] += committed
        self._context = [*self._context, *committed][-self._max_tree_depth :]

    def forget(self) -> None:
        self._cache = self._new_cache()
        self._answers.clear()

    def state(self) -> dict[str, Numbers]:
        return {"answers": list_answers(self._answers)}

    def restore(self, state: Mapping[str, Numbers]) -> None:
        if set(state) != {"answers"} or not are_answers(state["answers"]):
            raise InputError("the state makes no sense, it may be damaged")
        self.forget()
        for answer in answers_of(state["answers"]):
            self.reset(())
            self._cache.add_active_response(self._request, answer)
            self._answers[-1] += answer

    def _new_cache(self) -> Any:
        try:
            from arctic_inference.suffix_decoding import SuffixDecodingCache
        except ImportError as error:
            raise InputError(
                "the method suffix needs arctic-inference; `pip install -e '.[suffix]'` builds it "
                "(with a C++ compiler)"
            ) from error
        return SuffixDecodingCache(self._max_tree_depth, MOST_ANSWERS)
