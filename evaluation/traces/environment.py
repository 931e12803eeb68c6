"""The environment of a run for its sidecar: versions, hardware and commit."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from typing import Any

import torch

from model.logitspec import instruction_set
from model.logitspec.errors import InputError
from model.logitspec.instruction_set import cpu_info

from ..command.files import ROOT

VERSIONED = (
    "torch", "transformers", "tokenizers", "accelerate", "fschat", "numpy", "arctic-inference",
)  # fmt: skip


def describe_environment(device: str) -> dict[str, Any]:
    """Versions, hardware and commit, for the sidecar."""
    changes = git("status", "--porcelain", "--untracked-files=no")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "versions": versions,
        "platform": platform.platform(),
        "device_names": [cpu_info("model name") or platform.machine()] if device == "cpu" else gpus,
        "instruction_set": used_instruction_set() if device == "cpu" else None,
        "threads": torch.get_num_threads(),
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else changes != "",
    }


def used_instruction_set() -> str:
    """What this project and torch use; InputError if torch does not keep to LOGITSPEC_ISA."""
    capability = torch.backends.cpu.get_cpu_capability()
    if instruction_set.wanted() == "avx2" and capability != "AVX2":
        raise InputError(
            f"{instruction_set.VARIABLE} is 'avx2' and torch computes with {capability}; set it "
            "before Python starts, and ATEN_CPU_CAPABILITY=avx2 where that is set otherwise"
        )
    return instruction_set.describe()


def git(*command: str) -> str | None:
    """A git command's output in this repository, or None where there is none."""
    if not (ROOT / ".git").exists():
        return None
    words = ["git", "-C", str(ROOT), *command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
