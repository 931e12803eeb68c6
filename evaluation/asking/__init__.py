"""Asks a target a benchmark's questions by any method."""
