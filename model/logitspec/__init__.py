"""LogitSpec: speculative decoding without a draft model, by next next token speculation.

The names below are imported when they are first used: torch and transformers take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .instruction_set import lower_libraries

if TYPE_CHECKING:
    from .api import custom_generate, generate
    from .decoding import decode
    from .draft_tree import DraftTree
    from .drafters import (
        DRAFTERS,
        CalibratedDrafter,
        Drafter,
        LogitSpecDrafter,
        PromptLookupDrafter,
        RacerDrafter,
        SuffixDrafter,
        TokenRecyclingDrafter,
        VanillaDrafter,
        register,
    )
    from .errors import InputError
    from .kv_cache import KVCache
    from .ledger import DecodingResult
    from .loading import load
    from .modeling_llama_kv import LlamaKVForCausalLM
    from .ngram_pool import NgramPool
    from .sampling import Sampling
    from .wrapping import wrap

lower_libraries()

_MODULES = {
    "api": ("custom_generate", "generate"),
    "decoding": ("decode",),
    "draft_tree": ("DraftTree",),
    "drafters": (
        *("DRAFTERS", "Drafter", "register", "CalibratedDrafter", "LogitSpecDrafter"),
        *("PromptLookupDrafter", "RacerDrafter", "SuffixDrafter", "TokenRecyclingDrafter"),
        "VanillaDrafter",
    ),
    "errors": ("InputError",),
    "kv_cache": ("KVCache",),
    "ledger": ("DecodingResult",),
    "loading": ("load",),
    "modeling_llama_kv": ("LlamaKVForCausalLM",),
    "ngram_pool": ("NgramPool",),
    "sampling": ("Sampling",),
    "wrapping": ("wrap",),
}

__all__ = [
    "DRAFTERS",
    "CalibratedDrafter",
    "DecodingResult",
    "DraftTree",
    "Drafter",
    "InputError",
    "KVCache",
    "LlamaKVForCausalLM",
    "LogitSpecDrafter",
    "NgramPool",
    "PromptLookupDrafter",
    "RacerDrafter",
    "Sampling",
    "SuffixDrafter",
    "TokenRecyclingDrafter",
    "VanillaDrafter",
    "custom_generate",
    "decode",
    "generate",
    "load",
    "register",
    "wrap",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
