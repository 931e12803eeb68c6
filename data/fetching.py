"""Published files for data.prepare: downloaded or copied, checked, put in place whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import requests
from tqdm import tqdm

from evaluation.asking.questions import sha256
from evaluation.command.files import ROOT
from model.logitspec.errors import InputError, brief

from .sets import FILES, File

DATA = ROOT / "data"


def obtain(name: str, local: Path | None = None, data: Path = DATA) -> Path:
    """A file of the table FILES in `data`, fetched unless it is there.

    Args:
        local: a directory to take it from instead of the network.

    Raises:
        InputError: the file cannot be had, or is not the published one.
    """
    file = FILES[name]
    target = data / file.name
    if target.exists():
        if sha256(target) == file.sha256:
            return target
        raise InputError(
            f"{target} exists and is not the published file ({file.url}); move it away first"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if local is None:
        download(file, part)
        try:
            check_sha256(part, file.sha256, f"file {file.name}")
        except InputError:
            part.unlink()  # a wrong start must not be resumed
            raise
    else:
        source = local / file.name
        if not source.is_file():
            raise InputError(f"no file {source}; get it from {file.url}")
        check_sha256(source, file.sha256, f"file {file.name}")
        shutil.copyfile(source, part)
    with part.open("rb+") as whole:
        os.fsync(whole.fileno())
    part.replace(target)  # so that the name never holds half a file
    return target


def download(file: File, part: Path) -> None:
    """Fetch a file into `part`, going on where an earlier try left off if its size is known."""
    have = part.stat().st_size if file.bytes and part.exists() else 0
    if file.bytes and have >= file.bytes:
        return
    # identity: a range counts bytes of what is sent, which must not be compressed
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with (
            https_only() as session,
            session.get(file.url, headers=headers, stream=True, timeout=30) as reply,
        ):
            reply.raise_for_status()
            if reply.status_code != requests.codes.partial_content:
                have = 0  # the server sends the whole file again
            total = file.bytes or None
            with (
                part.open("ab" if have else "wb") as out,
                tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=file.name) as bar,
            ):
                for block in reply.iter_content(1 << 13):
                    bar.update(out.write(block))
    except requests.exceptions.InvalidSchema as error:
        raise InputError(
            f"{file.url} leads to a place that is not HTTPS: {brief(error)}"
        ) from error
    except requests.RequestException as error:
        raise InputError(
            f"cannot download {file.url} ({type(error).__name__}); run the same command again to "
            f"go on, or give a local copy, DIR/{file.name}, with --from DIR"
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
