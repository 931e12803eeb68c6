"""The sections of the page that `python -m evaluation.analyses` writes."""
