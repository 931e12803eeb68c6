"""The method calibrated, this project's own."""

from .drafter import CalibratedDrafter

__all__ = ["CalibratedDrafter"]
