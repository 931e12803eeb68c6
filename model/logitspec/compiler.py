"""Compiles C++ files of this package, each when first needed, into the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from .instruction_set import compiler_target, cpu_info, features, wanted
from .storage import cache_folder

log = logging.getLogger(__name__)
FLAGS = ("-std=c++20", "-shared", "-fPIC", "-w")

Pointer = ctypes.c_void_p
Int = ctypes.c_int64
Double = ctypes.c_double


def structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


class Unavailable(Exception):
    """Why compiled code cannot be used."""


def library(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    """A C++ file as a shared library, compiled here.

    Args:
        source: the file; it may include headers (*.h) of its folder and of this package.
        flags: of the compiler, beside FLAGS; {target} stands for the instruction set that is used.

    Raises:
        Unavailable: it cannot be compiled or loaded here.
    """
    built = build(source, flags)
    if isinstance(built, str):
        raise Unavailable(built)
    return built


@cache
def build(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL | str:
    """The same, compiled once; or why it cannot be."""
    name = source.stem
    try:
        compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
        if shutil.which(compiler[0]) is None:
            return f"there is no C++ compiler {compiler[0]!r} (the variable CXX names another)"
        flags = tuple(flag.format(target=compiler_target()) for flag in flags)
        tuned = ["-mtune=native"] if wanted() else []  # a lower set still runs on this CPU
        command = [*compiler, *FLAGS, *flags, *tuned, str(source)]
        target = cache_folder() / f"{name}-{fingerprint(compiler, command, source)}.so"
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            log.info("compiling %s, once for this machine", name)
            start = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                built = Path(folder, target.name)
                done = subprocess.run(
                    [*command, "-o", str(built)], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    said = next((line for line in done.stderr.splitlines() if "error" in line), "")
                    return (
                        f"{compiler[0]} does not compile {source.name}: {said or done.returncode}"
                    )
                built.replace(target)  # whole, whoever else compiles it at the same time
            log.info("compiled %s in %.1f s", name, time.perf_counter() - start)
        return ctypes.CDLL(str(target))
    except (OSError, RuntimeError, ValueError) as error:  # no home, a CXX that is no command
        return f"what is compiled of {name} cannot be stored or loaded: {error}"


def fingerprint(compiler: list[str], command: list[str], source: Path) -> str:
    """Tells apart what must be compiled apart: source, flags, compiler, and kind of CPU."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    cpu = [*sorted(features()), cpu_info("model name", "CPU part")]
    headers = {*source.parent.glob("*.h"), *Path(__file__).parent.rglob("*.h")}
    files = [source, *sorted(headers)]
    content = b"".join(file.read_bytes() for file in files)
    content += " ".join([*command[:-1], *cpu]).encode() + version
    return hashlib.sha256(content).hexdigest()[:16]
