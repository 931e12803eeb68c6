"""One file per method; each is a way to propose a draft tree."""

from .base import DRAFTERS, Drafter, register
from .logitspec import LogitSpecDrafter
from .vanilla import VanillaDrafter

__all__ = ["DRAFTERS", "Drafter", "LogitSpecDrafter", "VanillaDrafter", "register"]
