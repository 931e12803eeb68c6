"""What is mended of vLLM, and what it could not do; vLLM itself is not needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.logitspec.errors import InputError
from model.logitspec.vllm import CalibratedProposer, logits
from model.logitspec.vllm.mending import NAME, mend_in, repeated

from .fake_vllm import Runner, config


def test_numbers_are_repeated_for_the_drafts_of_each_request() -> None:
    for numbers in ([0.7, 0.0, 1.5], [5, 0, 3]):
        found = repeated(torch.tensor(numbers), torch.tensor([2, 2, 5]), 5)
        assert found.tolist() == pytest.approx([numbers[0]] * 2 + [numbers[2]] * 3)
        assert found.dtype == torch.tensor(numbers).dtype
    temperatures = torch.tensor([0.0, 0.7])
    assert repeated(temperatures, torch.tensor([1, 2]), 2, 0, 1).tolist() == pytest.approx([1, 0.7])


def test_only_a_function_at_fault_is_replaced() -> None:
    def into_a_copy(x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int) -> Any:
        return torch.full((num_tokens,), 1e-30, dtype=x.dtype)

    faulty, right = SimpleNamespace(**{NAME: into_a_copy}), SimpleNamespace(**{NAME: repeated})
    assert mend_in(faulty) and getattr(faulty, NAME) is repeated
    assert not mend_in(faulty) and not mend_in(right) and not mend_in(SimpleNamespace())


def test_a_step_without_drafts_is_sampled_without_verification() -> None:
    told: list[Any] = []

    class Telling(Runner):
        def _sample(self, logits: Any, spec_decode_metadata: Any) -> Any:
            told.append(spec_decode_metadata)

    assert logits.wrap(Telling) is None
    runner = Telling(CalibratedProposer(config(), rank=0, watch=lambda: None))
    none = SimpleNamespace(num_draft_tokens=[0, 0], draft_token_ids=torch.empty(0))
    some = SimpleNamespace(num_draft_tokens=[0, 1], draft_token_ids=torch.tensor([3]))
    for metadata in (None, none, some):
        runner._sample(torch.zeros(2, 5), metadata)
    assert told == [None, None, some]


def test_more_drafts_than_vllm_verifies_are_refused() -> None:
    CalibratedProposer(config(drafts=128), rank=0, watch=lambda: None)
    with pytest.raises(InputError, match="is 129, and vLLM verifies 128 at most; give fewer"):
        CalibratedProposer(config(drafts=129), rank=0, watch=lambda: None)
