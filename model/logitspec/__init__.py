"""LogitSpec: speculative decoding without a draft model, by next next token speculation.

The names below are imported when they are first used: torch and transformers take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .instruction_set import lower_libraries

if TYPE_CHECKING:
    from .api import custom_generate as custom_generate
    from .api import generate as generate
    from .api import generate_samples as generate_samples
    from .decoding import decode as decode
    from .draft_tree import DraftTree as DraftTree
    from .drafters import DRAFTERS as DRAFTERS
    from .drafters import CalibratedDrafter as CalibratedDrafter
    from .drafters import Drafter as Drafter
    from .drafters import LogitSpecDrafter as LogitSpecDrafter
    from .drafters import LookaheadDrafter as LookaheadDrafter
    from .drafters import PromptLookupDrafter as PromptLookupDrafter
    from .drafters import RacerDrafter as RacerDrafter
    from .drafters import RestDrafter as RestDrafter
    from .drafters import SamDrafter as SamDrafter
    from .drafters import SamRecyclingDrafter as SamRecyclingDrafter
    from .drafters import SuffixDrafter as SuffixDrafter
    from .drafters import TokenRecyclingDrafter as TokenRecyclingDrafter
    from .drafters import VanillaDrafter as VanillaDrafter
    from .drafters import register as register
    from .errors import InputError as InputError
    from .kv_cache import KVCache as KVCache
    from .ledger import DecodingResult as DecodingResult
    from .loading import load as load
    from .modeling_llama_kv import LlamaKVForCausalLM as LlamaKVForCausalLM
    from .ngram_pool import NgramPool as NgramPool
    from .sampling import Sampling as Sampling
    from .wrapping import wrap as wrap

lower_libraries()

_MODULES = {
    "api": ("custom_generate", "generate", "generate_samples"),
    "decoding": ("decode",),
    "draft_tree": ("DraftTree",),
    "drafters": (
        *("DRAFTERS", "Drafter", "register", "CalibratedDrafter", "LogitSpecDrafter"),
        *("PromptLookupDrafter", "RacerDrafter", "SuffixDrafter", "TokenRecyclingDrafter"),
        *("LookaheadDrafter", "RestDrafter", "SamDrafter", "SamRecyclingDrafter"),
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

__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
