"""The CPU's instruction set, and LOGITSPEC_ISA, by which this project uses a lower one.

Kernels, dtypes and the compiler's flags are chosen by it. A lower set serves to test and to measure
on one machine what another one would do. Imports no torch: it has to run before torch's first use.
"""

from __future__ import annotations

import os
from pathlib import Path

from .errors import InputError

VARIABLE = "LOGITSPEC_ISA"

# Instruction sets of x86, the lowest first: GCC's name, the flag of /proc/cpuinfo that a CPU has if
# it has the set, and the beginnings of the flags that lie above it.
X86 = {
    "avx2": ("x86-64-v3", "avx2", ("avx512", "avx10", "amx")),
    "avx512": ("x86-64-v4", "avx512vl", ("avx512_bf16", "avx512_fp16", "avx10", "amx")),
}
# What tells torch, oneDNN and MKL the same; they read it when they are first used.
LIBRARIES = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
}
HALVES = {  # flags of arithmetic in half precision
    "bfloat16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "float16": frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}


def cpu_info(*keys: str) -> str:
    """The first of some entries of /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    entries = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in entries if key.strip() in keys), "")


def wanted() -> str | None:
    """The instruction set that LOGITSPEC_ISA names; None where it is not set.

    Raises:
        InputError: no such instruction set, or this CPU lacks it.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    if name not in X86:
        raise InputError(f"{VARIABLE} is {name!r}; give {' or '.join(X86)}, or unset it")
    if X86[name][1] not in cpu_info("flags").split():
        raise InputError(f"{VARIABLE} is {name!r}, which this CPU does not have; unset it")
    return name


def features() -> frozenset[str]:
    """The CPU's features by their names in /proc/cpuinfo, without those above LOGITSPEC_ISA.

    Raises:
        InputError: as wanted().
    """
    found = frozenset(cpu_info("flags", "Features").split())
    name = wanted()
    if name is None:
        return found
    return frozenset(flag for flag in found if not flag.startswith(X86[name][2]))


def computes_in(dtype: str) -> bool:
    """Whether the CPU has instructions for the arithmetic of a dtype, by its name."""
    return dtype not in HALVES or bool(HALVES[dtype] & features())


def describe() -> str:
    """The instruction set in a word or two, for reports."""
    found = features()
    names = ("avx512_bf16", "avx512f", "avx2", "asimd")
    name = next((name for name in names if name in found), "unknown")
    return f"{name}, by {VARIABLE}" if wanted() else name


def compiler_target() -> str:
    """What GCC's -march is to be."""
    name = wanted()
    return "native" if name is None else X86[name][0]


def lower_libraries() -> None:
    """Have torch, oneDNN and MKL keep to LOGITSPEC_ISA, where the environment does not say."""
    for variable, value in LIBRARIES.get(os.environ.get(VARIABLE, ""), {}).items():
        os.environ.setdefault(variable, value)
