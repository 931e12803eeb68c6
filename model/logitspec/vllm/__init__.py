"""Drafts for vLLM, which loads one of these classes by its name (docs/vllm.md).

    vllm serve MODEL --speculative-config '{"method": "custom_class",
        "model": "logitspec.vllm.CalibratedProposer", "num_speculative_tokens": 8}'

vLLM itself is imported only where a proposer is made for it.
"""

from .proposers import CalibratedProposer, LogitSpecProposer, Proposer

__all__ = ["CalibratedProposer", "LogitSpecProposer", "Proposer"]
