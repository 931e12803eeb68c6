"""LogitSpec: speculative decoding without a draft model, by next next token speculation."""

from .decoding import DecodingResult, generate
from .draft_tree import DraftTree
from .drafters import DRAFTERS, Drafter, LogitSpecDrafter, VanillaDrafter, register
from .errors import InputError
from .kv_cache import KVCache
from .loading import load
from .modeling_llama_kv import LlamaKVForCausalLM
from .ngram_pool import NgramPool

__all__ = [
    "DRAFTERS",
    "DecodingResult",
    "DraftTree",
    "Drafter",
    "InputError",
    "KVCache",
    "LlamaKVForCausalLM",
    "LogitSpecDrafter",
    "NgramPool",
    "VanillaDrafter",
    "generate",
    "load",
    "register",
]
