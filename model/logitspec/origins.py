"""Where the nodes of a draft tree come from, in words for people to see; drafters say it."""

from __future__ import annotations

NEXT = "next token"
RETRIEVED = "retrieved after the next token"
GUESSED = "guess at the next next token"
CONTINUED = "retrieved after a guess"
COPIED = "copied logits"
PROBED = "only verified"
ORIGINS = (NEXT, RETRIEVED, GUESSED, CONTINUED, COPIED, PROBED)
