"""What the CPU is taken to have: its flags, and LOGITSPEC_ISA below them."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.logitspec import InputError, load
from model.logitspec.instruction_set import compiler_target, computes_in, describe

FLAGS = "fpu avx2 avx512f avx512vl avx512_bf16 amx_bf16"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def zen5(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("LOGITSPEC_ISA", raising=False)
    monkeypatch.setattr("model.logitspec.instruction_set.cpu_info", lambda *keys: FLAGS)
    return monkeypatch


def test_a_lower_set_hides_what_lies_above_it(zen5: pytest.MonkeyPatch) -> None:
    assert (computes_in("bfloat16"), compiler_target()) == (True, "native")
    assert describe() == "avx512_bf16"
    zen5.setenv("LOGITSPEC_ISA", "avx512")
    assert (computes_in("bfloat16"), compiler_target()) == (False, "x86-64-v4")
    assert describe() == "avx512f, by LOGITSPEC_ISA"
    zen5.setenv("LOGITSPEC_ISA", "avx2")
    assert (computes_in("bfloat16"), compiler_target()) == (False, "x86-64-v3")
    assert describe() == "avx2, by LOGITSPEC_ISA"


@pytest.mark.parametrize(
    ("name", "flags", "complaint"),
    [
        ("sse9", FLAGS, "LOGITSPEC_ISA is 'sse9'; give avx2 or avx512, or unset it"),
        ("avx512", "fpu avx2", "LOGITSPEC_ISA is 'avx512', which this CPU does not have; unset it"),
    ],
)
def test_sets_that_are_not_there_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, flags: str, complaint: str
) -> None:
    monkeypatch.setattr("model.logitspec.instruction_set.cpu_info", lambda *keys: flags)
    monkeypatch.setenv("LOGITSPEC_ISA", name)
    with pytest.raises(InputError, match=complaint):
        compiler_target()


def test_a_dtype_without_instructions_is_said_to_be_slow(
    tiny_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOGITSPEC_ISA", raising=False)
    monkeypatch.setattr("model.logitspec.instruction_set.cpu_info", lambda *keys: "fpu avx2")
    with pytest.warns(UserWarning, match="no instructions for bfloat16, so prompts and draft tr"):
        load(tiny_path, dtype="bfloat16", cpu_kernels="plain")
    load(tiny_path, dtype=torch.float32, cpu_kernels="plain")  # without a warning


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is of x86")
def test_the_libraries_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setenv("LOGITSPEC_ISA", "avx2")
    shown = "import model.logitspec, torch; print(torch.backends.cpu.get_cpu_capability())"
    done = subprocess.run(
        [sys.executable, "-c", shown], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "AVX2\n"
