"""Two ways to run a target: our loop with any drafter, and transformers' generate()."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from model.logitspec import DecodingResult, Drafter, LlamaKVForCausalLM, decode, load
from model.logitspec.listed import Numbers
from model.logitspec.loading import as_stored, load_weights
from model.logitspec.sampling import Sampling
from model.logitspec.sizing.measuring import MeasuredModel

from .settings import GREEDY
from .target import Target


class Models:
    """A target's weights, loaded when first used, once for all engines.

    If `shared`, our model and transformers' use the same tensors. Otherwise, and always if the
    model spans several GPUs, is quantized, or ours keeps its matrices as they are stored,
    transformers' model loads its own.
    """

    def __init__(self, target: Target, *, shared: bool) -> None:
        logging.disable_progress_bar()
        self.target = target
        shared = shared and target.device != "auto" and not target.quantized
        self.shared = shared and not as_stored(target.path, target.dtype, target.kernels)

    @cached_property
    def kv(self) -> LlamaKVForCausalLM:
        return load(
            self.target.path,
            **self.target.loading(),
            cpu_kernels=self.target.kernels.name,
            cuda_graphs=self.target.cuda_graphs,
            keep_weights=self.shared,
        )

    @cached_property
    def hf(self) -> Any:
        if self.shared:
            return transformers_twin(self.kv)
        return load_weights(AutoModelForCausalLM, self.target.path, **self.target.loading()).eval()


def transformers_twin(model: LlamaKVForCausalLM) -> Any:
    """transformers' own model with the tensors of ours."""
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    twin.model.rotary_emb = type(twin.model.rotary_emb)(twin.config)  # its buffers are computed
    wanted = twin.state_dict().keys()
    weights = {name: t for name, t in model.state_dict().items() if name in wanted}
    twin.load_state_dict(weights, strict=True, assign=True)
    # The config does not decide this: a tied checkpoint may still hold a separate head.
    if model.lm_head.weight is model.model.embed_tokens.weight:
        twin.get_output_embeddings().weight = twin.get_input_embeddings().weight
    return twin.to(model.device).eval().requires_grad_(False)


class Engine(Protocol):
    """A loaded model and a way to decode with it."""

    splits_time: bool  # whether its results hold the seconds of each phase
    facts: dict[str, Any]  # of this engine, for the environment in the sidecar

    def generate(
        self,
        prompt_ids: list[int],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        *,
        reuse_prefix: bool = False,
    ) -> DecodingResult:
        """Answer one prompt; `reuse_prefix`: the last ones may have read a part of it."""

    def forget(self) -> None:
        """Drop what the method has learnt from earlier prompts."""

    def state(self) -> dict[str, Numbers]:
        """What it has learnt; empty if nothing is kept, or it cannot be saved."""


class KVEngine:
    """Our decoding loop with a drafter."""

    splits_time = True

    def __init__(self, models: Models, drafter: Drafter) -> None:
        self.model = models.kv
        self.drafter = drafter
        facts = {"drafting_core": drafter.core, "stored": self.model.stored}
        self.facts: dict[str, Any] = {name: fact for name, fact in facts.items() if fact}
        drafter.prepare(MeasuredModel(self.model))
        self.eos_token_ids = models.target.eos_token_ids

    def generate(
        self,
        prompt_ids: list[int],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        *,
        reuse_prefix: bool = False,
    ) -> DecodingResult:
        return decode(
            self.model,
            prompt_ids,
            self.drafter,
            max_new_tokens=max_new_tokens,
            eos_token_ids=self.eos_token_ids,
            chooser=sampling.chooser(prompt_ids[:-1]),
            reuse_prefix=reuse_prefix,
        )

    def forget(self) -> None:
        self.drafter.forget()

    def state(self) -> dict[str, Numbers]:
        return self.drafter.state()


class HFEngine:
    """transformers' generate() on transformers' own model: the paper's baseline.

    Its samples have the same distribution as ours but differ: its random numbers are torch's. Each
    reads its prompt anew. Of `prompt_lookup_num_tokens`, transformers' own prompt lookup drafts so
    many; None: no drafts. A step is a forward of generate(), including the one over the prompt.
    """

    splits_time = False  # generate() does not measure its phases

    def __init__(self, models: Models, prompt_lookup_num_tokens: int | None = None) -> None:
        self.model = models.hf
        self.facts: dict[str, Any] = {}
        self._lookup = prompt_lookup_num_tokens
        self._eos = sorted(models.target.eos_token_ids)
        # The checkpoint's own may hold sampling settings or penalties, which would apply.
        self.model.generation_config = GenerationConfig()

    @torch.inference_mode()
    def generate(
        self,
        prompt_ids: list[int],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        *,
        reuse_prefix: bool = False,
    ) -> DecodingResult:
        torch.manual_seed(sampling.seed)
        config = GenerationConfig(
            **sampling.settings,
            max_new_tokens=max_new_tokens,
            prompt_lookup_num_tokens=self._lookup,
            eos_token_id=self._eos or None,
            pad_token_id=self._eos[0] if self._eos else 0,
        )
        ids = torch.tensor([prompt_ids], device=self.model.device)
        steps = StepStreamer()
        output = self.model.generate(
            ids, generation_config=config, attention_mask=torch.ones_like(ids), streamer=steps
        )
        return DecodingResult(
            len(prompt_ids),
            output[0, len(prompt_ids) :].tolist(),
            accept_lengths=steps.lengths,
            tree_sizes=[] if self._lookup else steps.lengths,
            step_seconds=steps.seconds,
        )

    def forget(self) -> None:
        """Nothing is learnt."""

    def state(self) -> dict[str, Numbers]:
        return {}


class StepStreamer(BaseStreamer):  # type: ignore[misc]
    """Notes the tokens and the seconds of every step of generate()."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.seconds: list[float] = []
        self._clock: float | None = None

    def put(self, value: torch.Tensor) -> None:
        now = time.perf_counter()
        if self._clock is not None:  # the first call brings the prompt
            self.lengths.append(value.numel())
            self.seconds.append(now - self._clock)
        self._clock = now

    def end(self) -> None:
        """Nothing to do."""
