"""A run's target: device, dtype, tokenizer, template and EOS ids, all before weights are loaded."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from model.logitspec.config import is_quantized, max_positions
from model.logitspec.devices import resolve_device
from model.logitspec.errors import InputError, brief
from model.logitspec.fastest import choose_kernels
from model.logitspec.loading import checkpoint, checkpoint_eos, choose_dtype, load_config
from model.logitspec.states import tokenizer_fingerprint

from ..traces.environment import describe_environment
from .prompts import PromptFormat
from .settings import TargetSettings

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class Target:
    """A checkpoint, and where and how it runs; engines load the weights."""

    def __init__(self, settings: TargetSettings) -> None:
        path, trust = settings.model_path, settings.trust_remote_code
        self.path = path
        self.gpus = settings.num_gpus_per_model
        # cpu, cuda:N, or auto for a model that spans several GPUs
        self.device: str = resolve_device(settings.device, self.gpus)
        config = load_config(path, trust_remote_code=trust)
        self.dtype = choose_dtype(settings.dtype, path, config, self.device, settings.cpu_kernels)
        self.tokenizer = load_tokenizer(path, trust_remote_code=trust)
        self.prompts = PromptFormat(model_name(path), self.tokenizer, settings.conv_template)
        self.eos_token_ids = eos_token_ids(path, config, self.tokenizer)
        self.eos_token_ids |= self.prompts.stop_token_ids
        self.max_positions = max_positions(config)
        self.fingerprint = fingerprint(path, config)
        self.tokenizer_fingerprint = tokenizer_fingerprint(self.tokenizer)
        self.kernels = choose_kernels(config, self.dtype, self.device, settings.cpu_kernels)
        self.cuda_graphs = resolve_graphs(settings.cuda_graphs, self.device)
        self.quantized = is_quantized(config)
        self.trust_remote_code = trust
        self.allow_pickle = settings.allow_pickle

    @classmethod
    def resolve(cls, settings: TargetSettings) -> Target:
        """The target that the settings describe; InputError if something is not there."""
        return cls(settings)

    def environment(self) -> dict[str, Any]:
        """Versions, hardware and what the target runs on, for a trace or a recording."""
        return describe_environment(self.device) | {
            "model_path": self.path,
            "kernels": self.kernels.name,
            "cuda_graphs": self.cuda_graphs,
        }

    def loading(self) -> dict[str, Any]:
        """Keyword arguments of load_weights() for this target."""
        memory = None
        if self.device == "auto":  # these GPUs, no offloading
            memory = {i: torch.cuda.get_device_properties(i).total_memory for i in range(self.gpus)}
        return {
            "dtype": self.dtype,
            "device_map": self.device,
            "max_memory": memory,
            "trust_remote_code": self.trust_remote_code,
            "allow_pickle": self.allow_pickle,
        }


def resolve_graphs(wanted: str, device: str) -> str:
    """--cuda-graphs; InputError for another word, or `on` for what is not one GPU."""
    if wanted not in ("auto", "on", "off"):
        raise InputError(f"--cuda-graphs {wanted!r} is not known; give auto, on or off")
    if wanted == "on" and not device.startswith("cuda"):
        place = "several GPUs" if device == "auto" else f"the device {device}"
        raise InputError(
            f"--cuda-graphs on needs the model on one GPU, not on {place}; give auto or off"
        )
    return wanted


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """The checkpoint's tokenizer; of a GGUF file the one that lies beside it, if any."""
    place, gguf = checkpoint(path)
    if all((Path(place) / name).is_file() for name in TOKENIZER_FILES):
        gguf = {}  # what a file holds has to be converted, for seconds
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **gguf)
    except Exception as error:  # a broken file may raise anything
        raise InputError(f"no tokenizer in {path}: {brief(error)}") from error


def eos_token_ids(path: str, config: Any, tokenizer: Any) -> set[int]:
    """Every id that ends a generation: the checkpoint's and the tokenizer's."""
    own = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    return checkpoint_eos(path, config) | own


def model_name(path: str) -> str:
    """A checkpoint's name: the last part of its hub id, also for a snapshot in a hub cache."""
    cached = re.search(r"models--[^/\\]*?--([^/\\]+)", path)
    return cached[1] if cached else Path(path).absolute().name.removesuffix(".gguf")


def fingerprint(path: str, config: Any) -> str:
    """SHA-256 of a checkpoint's config and samples of its weights, to tell namesakes apart.

    A weight file counts with its size and 64 evenly spread pieces of 4 KiB (fine-tunes differ
    everywhere), a hub id with its commit.
    """
    unlike = ("_name_or_path", "transformers_version")
    known = {key: value for key, value in config.to_dict().items() if key not in unlike}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    digest.update(str(getattr(config, "_commit_hash", None)).encode())
    files = [*Path(path).glob("*.safetensors"), *Path(path).glob("*.bin")]
    if Path(path).is_file():  # a GGUF file
        files = [Path(path)]
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for piece in range(64):
                content.seek(piece * size // 64)
                digest.update(content.read(4096))
    return digest.hexdigest()
