"""The target of a run: what the flags mean for device, dtype, tokenizer, template and EOS ids.

Everything here is settled, or refused, before any weights are loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from model.logitspec.errors import InputError, brief
from model.logitspec.kernels import Kernels, choose_kernels, cpu_info
from model.logitspec.loading import DTYPES, load_config
from model.logitspec.modeling_llama_kv import max_positions

from .prompts import PromptFormat


@dataclass
class Target:
    """A checkpoint and where and how it is to run; the weights are the engine's to load."""

    path: str
    device: str  # cpu, cuda:N, or auto for a model that spans several GPUs
    dtype: torch.dtype
    gpus: int
    tokenizer: Any
    prompts: PromptFormat
    eos_token_ids: set[int]
    max_positions: int
    fingerprint: str
    tokenizer_fingerprint: str
    kernels: Kernels
    cuda_graphs: str

    @classmethod
    def resolve(cls, args: argparse.Namespace) -> Target:
        """The target that the shared flags describe.

        Raises:
            InputError: something they name is not there.
        """
        device = resolve_device(args.device, args.num_gpus_per_model)
        dtype = resolve_dtype(args.dtype, device)
        config = load_config(args.model_path)
        tokenizer = load_tokenizer(args.model_path)
        prompts = PromptFormat(model_name(args.model_path), tokenizer, args.conv_template)
        return cls(
            path=args.model_path,
            device=device,
            dtype=dtype,
            gpus=args.num_gpus_per_model,
            tokenizer=tokenizer,
            prompts=prompts,
            eos_token_ids=eos_token_ids(args.model_path, config, tokenizer)
            | prompts.stop_token_ids,
            max_positions=max_positions(config),
            fingerprint=fingerprint(args.model_path, config),
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
            kernels=choose_kernels(config, dtype, device, args.cpu_kernels),
            cuda_graphs=resolve_graphs(args.cuda_graphs, device),
        )

    def loading(self) -> dict[str, Any]:
        """Keyword arguments of from_pretrained that put the weights where they belong."""
        memory = None
        if self.device == "auto":  # these GPUs and no offloading
            memory = {i: torch.cuda.get_device_properties(i).total_memory for i in range(self.gpus)}
        return {"dtype": self.dtype, "device_map": self.device, "max_memory": memory}


def resolve_device(name: str, gpus_per_model: int = 1) -> str:
    """`cpu` or `cuda:N` for --device; "auto" as the device_map when the model spans several GPUs.

    Raises:
        InputError: there is no such device here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"device {name!r} is not known; give auto, cpu, cuda or cuda:N")
    if name == "cpu":
        if gpus_per_model > 1:
            raise InputError(
                f"--num-gpus-per-model is {gpus_per_model} on device cpu; "
                "leave it at 1 or use --device cuda"
            )
        return name
    if gpus_per_model > 1 and ":" in name:
        raise InputError(
            f"device {name} is one GPU, --num-gpus-per-model is {gpus_per_model}; "
            "use --device cuda and choose the GPUs with CUDA_VISIBLE_DEVICES"
        )
    index = int(name.partition(":")[2] or 0)
    needed = max(index + 1, gpus_per_model)
    if needed > gpus:
        raise InputError(
            f"device {name} with {gpus_per_model} GPU(s) per model needs {needed}, "
            f"torch sees {gpus} here; use --device cpu or fewer GPUs"
        )
    return "auto" if gpus_per_model > 1 else f"cuda:{index}"


def resolve_graphs(wanted: str, device: str) -> str:
    """--cuda-graphs, checked against the device.

    Raises:
        InputError: another word, or `on` for what is not one GPU.
    """
    if wanted not in ("auto", "on", "off"):
        raise InputError(f"--cuda-graphs {wanted!r} is not known; give auto, on or off")
    if wanted == "on" and not device.startswith("cuda"):
        place = "several GPUs" if device == "auto" else f"the device {device}"
        raise InputError(
            f"--cuda-graphs on needs the model on one GPU, not on {place}; give auto or off"
        )
    return wanted


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """The dtype --dtype means on a device (see its help).

    Raises:
        InputError: no dtype of that name.
    """
    if name == "auto":
        if device != "cpu":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if native else torch.float16
        features = cpu_info("flags", "Features").split()
        native = any(name in features for name in ("avx512_bf16", "amx_bf16", "bf16"))
        return torch.bfloat16 if native else torch.float32
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is not known; give auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def load_tokenizer(path: str) -> Any:
    """The checkpoint's tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # whatever a broken file makes of it
        raise InputError(f"no tokenizer in {path}: {brief(error)}") from error


def eos_token_ids(path: str, config: Any, tokenizer: Any) -> set[int]:
    """Every id that ends a generation: the generation config's or config's, the tokenizer's."""
    try:
        configured = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # a checkpoint need not have one
        configured = getattr(config, "eos_token_id", None)
    except Exception as error:  # whatever a broken file makes of it
        raise InputError(f"bad generation_config.json in {path}: {brief(error)}") from error
    ids = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None}


def model_name(path: str) -> str:
    """A checkpoint's own name: the hub id's last part, also for a snapshot in a hub cache."""
    cached = re.search(r"models--[^/\\]*?--([^/\\]+)", path)
    return cached[1] if cached else Path(path).absolute().name


def fingerprint(path: str, config: Any) -> str:
    """SHA-256 that tells two checkpoints of one name apart: the config and samples of the weights.

    Of each weight file its size and 64 pieces of 4 KiB, spread evenly, for fine-tunes differ
    everywhere; of a hub id its commit.
    """
    known = config.to_dict()
    for key in ("_name_or_path", "transformers_version"):
        known.pop(key, None)
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    digest.update(str(getattr(config, "_commit_hash", None)).encode())
    files = [*Path(path).glob("*.safetensors"), *Path(path).glob("*.bin")]
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for piece in range(64):
                content.seek(piece * size // 64)
                digest.update(content.read(4096))
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of how a tokenizer splits text: its whole definition, or where that is not in one
    piece (tokenizers in Python) its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
