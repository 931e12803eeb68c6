"""One file per method; each is a way to propose a draft tree. The imports register them."""

from .base import DRAFTERS, Drafter, register
from .calibrated import CalibratedDrafter
from .logitspec import LogitSpecDrafter
from .lookahead import LookaheadDrafter
from .prompt_lookup import PromptLookupDrafter
from .racer import RacerDrafter
from .rest import RestDrafter
from .sam import SamDrafter
from .sam_recycling import SamRecyclingDrafter
from .suffix import SuffixDrafter
from .token_recycling import TokenRecyclingDrafter
from .vanilla import VanillaDrafter

__all__ = [
    "DRAFTERS",
    "CalibratedDrafter",
    "Drafter",
    "LogitSpecDrafter",
    "LookaheadDrafter",
    "PromptLookupDrafter",
    "RacerDrafter",
    "RestDrafter",
    "SamDrafter",
    "SamRecyclingDrafter",
    "SuffixDrafter",
    "TokenRecyclingDrafter",
    "VanillaDrafter",
    "register",
]
