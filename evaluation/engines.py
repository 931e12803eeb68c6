"""The two ways to run a target: our loop with any drafter, and transformers' generate()."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from model.logitspec import DecodingResult, Drafter, generate, load
from model.logitspec.loading import load_weights

from .targets import Target


class KVEngine:
    """Our decoding loop with a drafter."""

    splits_time = True

    def __init__(self, target: Target, drafter: Drafter) -> None:
        logging.disable_progress_bar()
        self.model = load(target.path, **target.loading())
        self.drafter = drafter
        self.eos_token_ids = target.eos_token_ids

    def generate(self, prompt_ids: list[int], max_new_tokens: int) -> DecodingResult:
        return generate(
            self.model,
            prompt_ids,
            self.drafter,
            max_new_tokens=max_new_tokens,
            eos_token_ids=self.eos_token_ids,
        )


class HFEngine:
    """transformers' generate(), greedy, on transformers' own model: the paper's baseline."""

    splits_time = False  # generate() does not say where its time goes

    def __init__(self, target: Target) -> None:
        logging.disable_progress_bar()
        self.model = load_weights(AutoModelForCausalLM, target.path, **target.loading()).eval()
        eos = sorted(target.eos_token_ids)
        # The checkpoint's own generation config may hold sampling settings or penalties.
        self.model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=eos or None, pad_token_id=eos[0] if eos else 0
        )

    @torch.inference_mode()
    def generate(self, prompt_ids: list[int], max_new_tokens: int) -> DecodingResult:
        ids = torch.tensor([prompt_ids], device=self.model.device)
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens
        )
        tokens = output[0, len(prompt_ids) :].tolist()
        ones = [1] * len(tokens)
        return DecodingResult(len(prompt_ids), tokens, accept_lengths=ones, tree_sizes=ones)
