"""A fault of vLLM 0.32 on CPUs, mended in the process.

Where drafts are verified at a temperature, vLLM repeats each request's temperature, top-k and top-p
for its drafts. On a CPU it leaves out all but int64 numbers, since the kernel writes into a copy
(https://github.com/vllm-project/vllm/issues/55005). Then samples, and greedy answers beside them,
are drawn with whatever the memory held, whichever method drafts.
"""

from __future__ import annotations

import torch

from .logits import log

NAME = "expand_batch_to_tokens"
TRIED = 0.7123, 1.3579  # as temperatures


def mend() -> bool:
    """Replace the function in this process if it is at fault; whether it was."""
    try:
        from vllm.platforms import current_platform
        from vllm.v1.sample import rejection_sampler
    except ImportError:
        return False
    return current_platform.is_cpu() and mend_in(rejection_sampler)


def mend_in(module: object) -> bool:
    """The same in a module that has such a function."""
    repeat = getattr(module, NAME, None)
    if repeat is None:
        return False
    for number in TRIED:
        given = torch.tensor([number])
        if repeat(given, torch.tensor([2]), 2).tolist() != given.tolist() * 2:
            setattr(module, NAME, repeated)
            log.info("logitspec replaces vLLM's %s, which does not repeat numbers here", NAME)
            return True
    return False


def repeated(
    x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Each number as often as its request has tokens.

    Args:
        x: [requests] numbers.
        cu_num_tokens: [requests] tokens of each and of those before it.
        num_tokens: of all.
        replace_from: a number that stands for another one.
        replace_to: that one.

    Returns:
        [num_tokens]
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    found = torch.repeat_interleave(x, counts, output_size=num_tokens)
    return found.masked_fill(found == replace_from, replace_to)
