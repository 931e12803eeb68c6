"""For use outside of the benchmark: generate(), and the same for several samples and for models of
transformers."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from types import FrameType
from typing import Any, cast

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    MaxLengthCriteria,
)

from .decoding import Step, check_lengths, decode
from .drafters import DRAFTERS, Drafter
from .errors import InputError, is_whole, require_positive
from .ledger import DecodingResult
from .modeling_llama_kv import LlamaKVForCausalLM
from .sampling import Chooser, Sampling
from .wrapping import wrap


def generate(
    model: Any,
    input_ids: Sequence[int] | torch.Tensor,
    method: str | Drafter = "calibrated",
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    eos_token_ids: int | Collection[int] | None = None,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    streamer: Any = None,
    on_commit: Callable[[list[int]], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    reuse_prefix: bool = False,
) -> DecodingResult:
    """Generate after a prompt; the tokens are the target's own, only the forwards are fewer.

    Args:
        model: the target, from load(), or a model that wrap() takes.
        input_ids: of the prompt, n of them or a tensor [n] or [1, n].
        method: a name in DRAFTERS, or a drafter, which keeps from one call to the next what its
            method keeps.
        max_new_tokens: most tokens to generate; never exceeded.
        temperature: of sampling; 0: the best token, always. The other filters are Sampling's.
        seed: of sampling; None: a new one, each time.
        eos_token_ids: the first of these, or this one, ends the generation and is kept; None: the
            checkpoint's.
        logits_processor: transformers' or yours, called before temperature and filters with the
            ids up to a token and its logits: functions of these two alone.
        stopping_criteria: transformers' or yours, asked after every token, without scores.
        streamer: a transformers streamer, given the prompt and then the tokens of each step.
        on_commit: called after each step with the tokens it committed.
        on_step: the same with the tree that was verified, its committed nodes and where each of its
            nodes comes from.
        reuse_prefix: do not read again what the prompt begins with and an earlier call's prompt and
            answer began with, as in a conversation; only while the weights stay the same.

    Returns:
        The tokens and the books: accept lengths, tree sizes, seconds per phase.

    Raises:
        InputError: what is asked for makes no sense, or is not there.
    """
    model = wrap(model)
    prompt = one_prompt(input_ids)
    vocabulary = model.config.vocab_size
    if not all(0 <= token < vocabulary for token in prompt):
        raise InputError(f"input_ids holds ids outside the vocabulary of {vocabulary} tokens")
    sampling = Sampling(
        temperature, top_k, top_p, min_p, repetition_penalty,
        secrets.randbelow(2**63) if seed is None else seed,
    )  # fmt: skip
    processors = LogitsProcessorList([*(logits_processor or ()), *sampling.processors()])
    drafter = find_drafter(method)
    eos_ids = model.eos_token_ids if eos_token_ids is None else ids_of(eos_token_ids)
    check_lengths(len(prompt), max_new_tokens, model.max_positions)
    if streamer is not None:
        streamer.put(torch.tensor([prompt]))
    return run(
        model,
        prompt,
        drafter,
        processors=processors,
        seed=sampling.seed if temperature > 0 else None,
        max_new_tokens=max_new_tokens,
        eos_token_ids=eos_ids,
        stopping_criteria=stopping_criteria,
        streamer=streamer,
        on_commit=on_commit,
        on_step=on_step,
        reuse_prefix=reuse_prefix,
    )


def generate_samples(
    model: Any,
    input_ids: Sequence[int] | torch.Tensor,
    method: str | Drafter = "calibrated",
    *,
    n: int,
    seed: int | None = None,
    reuse_prefix: bool = False,
    **options: Any,
) -> list[DecodingResult]:
    """Several samples of one prompt, which is read once; each drafts with what those before showed.

    Args:
        model: see generate(), also for `input_ids` and `method`.
        n: how many samples.
        seed: of the first; the next have the numbers after it. None: a new one, each time.
        reuse_prefix: for the first, too.
        options: others of generate().

    Returns:
        The samples, each what generate() gives with its seed.

    Raises:
        InputError: see generate().
    """
    require_positive(n=n)
    model = wrap(model)
    drafter = find_drafter(method)
    first = secrets.randbelow(2**63 - n) if seed is None else seed
    Sampling(seed=first)  # or it is refused before anything is computed
    Sampling(seed=first + n - 1)
    return [
        generate(
            model, input_ids, drafter, seed=first + index, reuse_prefix=reuse_prefix or index > 0,
            **options,
        )
        for index in range(n)
    ]  # fmt: skip


def run(
    model: LlamaKVForCausalLM,
    prompt: list[int],
    drafter: Drafter,
    *,
    processors: LogitsProcessorList,
    seed: int | None,
    max_new_tokens: int,
    eos_token_ids: Collection[int],
    stopping_criteria: StoppingCriteriaList | None,
    streamer: Any,
    on_commit: Callable[[list[int]], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    reuse_prefix: bool = False,
) -> DecodingResult:
    """decode() with transformers' helpers; `seed` None: no noise. A streamer has the prompt."""
    check_processors(processors)

    def stop(tokens: list[int]) -> bool:
        ids = torch.tensor([prompt + tokens], device=model.device)
        return bool(cast(StoppingCriteriaList, stopping_criteria)(ids, None).all())

    def commit(tokens: list[int]) -> None:
        if streamer is not None:
            streamer.put(torch.tensor(tokens))
        if on_commit is not None:
            on_commit(tokens)

    result = decode(
        model,
        prompt,
        drafter,
        max_new_tokens=max_new_tokens,
        eos_token_ids=eos_token_ids,
        on_commit=commit,
        on_step=on_step,
        stop=stop if stopping_criteria else None,
        chooser=Chooser(processors, seed, prompt[:-1]),
        reuse_prefix=reuse_prefix,
    )
    if streamer is not None:
        streamer.end()
    return result


def one_prompt(input_ids: Any) -> list[int]:
    """The ids of a single prompt.

    Raises:
        InputError: there are several, or they are no ids.
    """
    if isinstance(input_ids, torch.Tensor) or hasattr(input_ids, "__array__"):
        tensor = torch.as_tensor(input_ids)
        if tensor.dim() == 2 and len(tensor) == 1:
            tensor = tensor[0]
        if tensor.dim() != 1 or tensor.is_floating_point():
            raise InputError(
                f"input_ids is {tensor.dtype} {list(tensor.shape)}; give the token ids of "
                "one prompt, [n] or [1, n]: a draft tree fills the batch"
            )
        input_ids = tensor.tolist()
    if isinstance(input_ids, str) or not isinstance(input_ids, Sequence):
        raise InputError(
            f"input_ids is of the type {type(input_ids).__name__}; give the token ids of one prompt"
        )
    for token in input_ids:
        if not is_whole(token):
            raise InputError(
                f"input_ids holds {str(token)[:40]!r}, which is no token id; give the token ids of "
                "one prompt"
            )
    return [int(token) for token in input_ids]


def ids_of(eos_token_ids: Any) -> set[int]:
    """EOS ids as transformers takes them: one, several, or None.

    Raises:
        InputError: they are no token ids.
    """
    given = [] if eos_token_ids is None else listed(eos_token_ids)
    given = [given] if is_whole(given) else given
    if isinstance(given, str) or not isinstance(given, Collection):
        raise InputError(f"eos_token_ids is {eos_token_ids!r}; give a token id, or several")
    for token in given:
        if not is_whole(token):
            raise InputError(f"eos_token_ids holds {token!r}; give a token id, or several")
    return {int(token) for token in given}


def listed(values: Any) -> Any:
    """Numbers of torch or numpy as Python's, in lists of lists; anything else as it is."""
    return values.tolist() if hasattr(values, "tolist") else values


def find_drafter(method: Any) -> Drafter:
    """The drafter itself, or a new one of this name; NAME@16 and NAME@auto have that capacity.

    Raises:
        InputError: there is none of this name, or it has no such capacity.
    """
    if isinstance(method, Drafter):
        return method
    if isinstance(method, type) and issubclass(method, Drafter):
        raise InputError(
            f"method is the class {method.__name__}; give a drafter, {method.__name__}()"
        )
    name, sized, size = method.partition("@") if isinstance(method, str) else (method, "", "")
    if not isinstance(name, str) or name not in DRAFTERS:
        raise InputError(f"no method {method!r}; there are {', '.join(DRAFTERS)}")
    if not sized:
        return DRAFTERS[name]()
    if CAPACITY not in DRAFTERS[name].options:
        raise InputError(f"no method {method!r}: {name} has no draft-tree capacity; give {name!r}")
    options: dict[str, Any] = {CAPACITY: int(size) if size.isdecimal() else size}
    return DRAFTERS[name](**options)


CAPACITY = "draft_tree_capacity"

# Processors that keep something from one call to the next, or run a model of their own: they are
# called once for every node, not once for every token.
STATEFUL = (
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",  # guidance_scale
    "SynthIDTextWatermarkLogitsProcessor",
    "WhisperTimeStampLogitsProcessor",
    "WhisperNoSpeechDetection",
)


def check_processors(processors: LogitsProcessorList) -> None:
    """Raise InputError for those that are not functions of ids and logits alone."""
    for processor in processors:
        if type(processor).__name__ in STATEFUL:
            raise InputError(
                f"the logits processor {type(processor).__name__} keeps a state from token to "
                "token, and a draft tree asks for many at once; leave it out"
            )


def custom_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    synced_gpus: bool = False,
    streamer: Any = None,
    method: str | Drafter = "calibrated",
    **model_kwargs: Any,
) -> Any:
    """For `model.generate(ids, custom_generate=logitspec.custom_generate, method=...)`.

    The generation config, logits processors, stopping criteria and streamer of the call hold. The
    noise of sampling comes of torch's seed, so torch.manual_seed() makes it repeatable; the samples
    are others than transformers' own for it, of the same distribution.

    Returns:
        [1, n] token ids, prompt included; with return_dict_in_generate an object that holds them as
        `sequences` and the DecodingResult as `decoding`.

    Raises:
        InputError: an option that this cannot do, by its name.
    """
    # transformers up to 5.23 keep these from a callable: they are in the frame of its generate().
    call = calling_frame()
    streamer = call.get("streamer") if streamer is None else streamer
    refuse_options(
        generation_config,
        call.get("assistant_model"),
        synced_gpus or bool(call.get("synced_gpus")),
        model_kwargs,
    )
    prompt = one_prompt(input_ids)
    target = wrap(model)
    eos_ids = ids_of(generation_config.eos_token_id)
    result = run(
        target,
        prompt,
        find_drafter(method),
        processors=logits_processor,
        seed=int(torch.randint(2**63 - 1, ())) if generation_config.do_sample else None,
        max_new_tokens=generation_config.max_length - len(prompt),
        eos_token_ids=eos_ids,
        stopping_criteria=StoppingCriteriaList(
            criterion
            for criterion in stopping_criteria
            if not is_known_end(criterion, generation_config.max_length, eos_ids)
        ),
        streamer=streamer,
    )
    sequences = torch.tensor([prompt + result.tokens], device=input_ids.device)
    if not generation_config.return_dict_in_generate:
        return sequences
    output = GenerateDecoderOnlyOutput(sequences=sequences)
    output.decoding = result
    return output


def calling_frame() -> dict[str, Any]:
    """The local names of the transformers generate() that is running; empty where there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_name == "generate" and module.startswith("transformers."):
            return dict(frame.f_locals)
        frame = frame.f_back
    return {}


def is_known_end(criterion: Any, max_length: int, eos_ids: Collection[int]) -> bool:
    """Whether decode() sees to a criterion itself: transformers' own, of this length and EOS."""
    if type(criterion) is MaxLengthCriteria:
        return bool(criterion.max_length == max_length)
    return type(criterion) is EosTokenCriteria and set(criterion.eos_token_id.tolist()) == eos_ids


def refuse_options(
    config: Any, assistant_model: Any, synced_gpus: bool, model_kwargs: Mapping[str, Any]
) -> None:
    """Raise InputError for what a call of transformers' generate() asks for and this cannot do."""
    mask = model_kwargs.get("attention_mask")
    past = model_kwargs.get("past_key_values")
    positions = model_kwargs.get("position_ids")
    asked = {
        "assistant_model": assistant_model is not None,
        "synced_gpus": synced_gpus,
        "an attention_mask with zeros": mask is not None and not bool(mask.all()),
        "inputs_embeds": model_kwargs.get("inputs_embeds") is not None,
        "position_ids": positions is not None
        and positions[-1].tolist() != list(range(positions.shape[-1])),
        "past_key_values": past is not None and past.get_seq_length() > 0,
        "num_beams": (config.num_beams or 1) > 1,
        "num_return_sequences": (config.num_return_sequences or 1) > 1,
        "use_cache=False": config.use_cache is False,
        **{name: bool(getattr(config, name, None)) for name in REFUSED},
    }
    names = [name for name, wanted in asked.items() if wanted]
    if names:
        raise InputError(
            f"custom_generate cannot do {', '.join(names)}; leave it out, or generate without "
            "custom_generate"
        )


# Options of transformers' GenerationConfig that are other ways to decode, or want more than tokens.
REFUSED = (
    *("assistant_early_exit", "cache_implementation", "constraints", "dola_layers"),
    *("force_words_ids", "output_attentions", "output_hidden_states", "output_logits"),
    *("output_scores", "penalty_alpha", "prompt_lookup_num_tokens", "speculation_type", "use_mtp"),
)
