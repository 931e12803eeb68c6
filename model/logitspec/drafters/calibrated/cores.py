"""What drafts: a core in C++ where it can be compiled, or the same in Python."""

from __future__ import annotations

import warnings

from ...compiler import Unavailable
from ...errors import InputError
from ...sizing.acceptance_table import AcceptanceTable
from .compiled import CompiledCore
from .corrections import Corrections
from .evidence import Evidence
from .foresight import ForesightTable, SampledCore
from .growth import ReadableCore

CORES = ("auto", "native", "python")
Core = ReadableCore | CompiledCore
Known = tuple[Evidence, AcceptanceTable, Corrections, int]  # to a core, with its capacity


def find_core(
    wanted: str,
    known: Known,
    learnt: ForesightTable | None = None,
    *,
    readable: type[ReadableCore] = ReadableCore,
    chain_least: float = 0.0,
    shared: Core | None = None,
) -> Core:
    """The core that is wanted.

    Args:
        wanted: one of CORES.
        known: to the core.
        learnt: of samples whose noise is known; None: best tokens are drafted.
        readable: the core in Python that drafts trees.
        chain_least: see growth.ReadableCore.
        shared: a core with which it shares what it keeps; of the same settings, and in Python the
            evidence is to be shared already.

    Raises:
        InputError: there is no such core, or it cannot be compiled here.
    """
    assert learnt is None or not chain_least, "chains know no noise"
    if wanted not in CORES:
        raise InputError(f"drafting_core is {wanted!r}; give {', '.join(CORES)}")
    if wanted != "python":
        other = shared if isinstance(shared, CompiledCore) else None
        try:
            return CompiledCore(*known, learnt, chain_least=chain_least, shared=other)
        except Unavailable as error:
            if wanted == "native":
                raise InputError(
                    f"drafting_core cannot be native: {error}; give auto or python"
                ) from error
            message = f"calibrated drafts in Python, which is slower: {error}"
            warnings.warn(message, stacklevel=5)
    if learnt is not None:
        return SampledCore(*known, learnt)
    if chain_least:
        return ReadableCore(*known, chain_least=chain_least)
    return readable(*known)
