"""Loading a checkpoint, local or from the hub, as the patched model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, GenerationConfig
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from .config import ARCHITECTURES
from .cpu.choice import Kernels
from .devices import resolve_device, resolve_dtype
from .errors import InputError, brief
from .fastest import choose_kernels
from .gguf_files import GgufFile, gguf_config, load_stored, parse, why_not_as_stored
from .half import QUIETLY, half_of, widen_all_but_matrices
from .instruction_set import computes_in
from .layout import finish
from .modeling_llama_kv import LlamaKVForCausalLM

HARMLESS_TENSORS = (
    *("rotary_emb.inv_freq", "lm_head.weight"),  # recomputed; tied where unexpected
    *(".k_scale", ".v_scale", ".k_proj.output_scale", ".v_proj.output_scale"),  # of an 8-bit cache
)
SCALING = ".rope.scaling.type"  # key in a GGUF file, behind the architecture's name
SAFE_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
PICKLES = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
QUANTIZED = re.compile(r"scale|zero|g_idx|absmax|quant_|codebook|SCB")  # in names of tensors
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


def checkpoint(path: str) -> tuple[str, dict[str, str]]:
    """What transformers' from_pretrained wants for a path: a directory or hub id, and options.

    Args:
        path: a directory, a hub id, or a file NAME.gguf in one of both.

    Raises:
        InputError: there is no such directory or file.
    """
    place, gguf = path, {}
    if path.endswith(".gguf"):
        place, _, name = path.rpartition("/")
        place, gguf = place or path[: path.startswith("/")] or ".", {"gguf_file": name}
    local = Path(place)
    names_a_path = (
        place.startswith((".", "/", "~")) or place.count("/") != 1 or local.parent.is_dir()
    )
    if names_a_path and not (path and local.is_dir()):
        raise InputError(f"no model directory {place!r}; give a checkpoint directory or a hub id")
    if local.is_dir() and gguf and not Path(path).is_file():
        raise InputError(f"no GGUF file {path}; give one, a checkpoint directory or a hub id")
    return place, gguf


def read_gguf(path: str) -> GgufFile:
    """What is in a GGUF file; read once a process, for a long vocabulary takes seconds.

    Raises:
        InputError: it cannot be read.
    """
    place, gguf = checkpoint(path)
    try:
        file = Path(cached_file(place, gguf["gguf_file"])).resolve()
        return parse(file, file.stat().st_mtime_ns, file.stat().st_size)
    except Exception as error:  # whatever a broken file makes of it
        raise InputError(f"cannot read {path}: {said(error, place)}") from error


def said(error: Exception, place: str) -> str:
    """What was wrong with a directory, hub id or GGUF file that cannot be read, and what to do."""
    way_out = "see that it is whole, or get it again"
    if isinstance(error, OSError) and not Path(place).exists():
        way_out = "give a checkpoint directory, or see that the hub has it and can be reached"
    return f"{brief(error).rstrip('.')}; {way_out}"


def load_config(path: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a checkpoint that the patched model can run.

    Args:
        path: of the checkpoint.
        trust_remote_code: run the Python code that comes with it, where its kind is not known.

    Raises:
        InputError: there is no such checkpoint, or it is none of ARCHITECTURES and ROPE_TYPES.
    """
    place, gguf = checkpoint(path)
    if Path(place).is_dir() and not gguf and not (Path(place) / "config.json").is_file():
        raise InputError(f"{path} holds no config.json; give a checkpoint directory or a hub id")
    try:
        if gguf:
            config = gguf_config(place, gguf["gguf_file"], read_gguf(path))
        else:
            config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    except InputError:
        raise
    except Exception as error:  # whatever a broken file makes of it
        raise InputError(
            f"cannot read the config of the model {path}: {said(error, place)}"
        ) from error
    if gguf:
        check_gguf_rope(path, read_gguf(path))
    return check_config(config, path)


def check_gguf_rope(path: str, file: GgufFile) -> None:
    """Raise InputError for rotary scaling in a GGUF file, which transformers does not read."""
    kinds = [kind for key, kind in file.fields.items() if key.endswith(SCALING)]
    scaled = any(kind != "none" for kind in kinds)
    if scaled or any(name.startswith("rope_freqs") for name in file.tensors):
        raise InputError(
            f"{path} scales its rotary embeddings, which transformers does not read from GGUF "
            "files; give the checkpoint as safetensors"
        )


def check_config(config: Any, name: str) -> Any:
    """The configuration, if the patched model can run it.

    Args:
        config: of transformers.
        name: of the model, for the message.

    Raises:
        InputError: it is none of ARCHITECTURES and ROPE_TYPES.
    """
    if config.model_type not in ARCHITECTURES:
        raise InputError(
            f"the model {name} is of the architecture {config.model_type!r}; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise InputError(
            f"the model {name} has rope_type {rope!r}; supported are {', '.join(ROPE_TYPES)}"
        )
    return config


def load_weights(
    cls: Any,
    path: str,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """cls.from_pretrained, which fills missing tensors with random numbers, without that.

    Args:
        cls: class of models of transformers.
        path: of the checkpoint.
        allow_pickle: read weights that are there as pickles only (*.bin), which can hold code.
        trust_remote_code: as load_config().
        options: of from_pretrained.

    Raises:
        InputError: the weights cannot be read, do not fill the model, or do not fit it.
    """
    place, gguf = checkpoint(path)
    if gguf and hasattr(transformers, "GgufConfig"):
        # Newer releases of transformers can keep the blocks packed: ask them not to.
        options = {"quantization_config": transformers.GgufConfig(dequantize=True)} | options
    if not gguf and not allow_pickle:
        check_no_pickle(path)
        options["use_safetensors"] = True
    try:
        model, info = cls.from_pretrained(
            place,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **gguf,
            **options,
        )
    except Exception as error:  # whatever a broken file, or too small a device, makes of it
        raise InputError(f"cannot load the weights of {path}: {brief(error)}") from error
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise InputError(
            f"the weights of {path} lack {len(wrong)} tensor(s), the first is {wrong[0]}"
        )
    spare = [key for key in info["unexpected_keys"] if not key.endswith(HARMLESS_TENSORS)]
    if spare and cls is LlamaKVForCausalLM:
        raise InputError(
            f"{path} holds {len(spare)} tensor(s) that the patched model has no place for, "
            f"the first is {min(spare)}"
        )
    # transformers' own classes drop what they have no place for: harmless, if a part by itself.
    parts = {name.rpartition(".")[0] for name, _ in model.named_parameters(remove_duplicate=False)}
    changing = [key for key in spare if changes_a_weight(key, parts)]
    if changing:
        first = min(changing)
        way_out = "give a checkpoint that fits its config.json"
        if QUANTIZED.search(first):
            way_out = "its config.json has to name how it is quantized, in a way transformers reads"
        raise InputError(
            f"{path} holds {len(changing)} tensor(s) that change what its weights mean, and "
            f"transformers does not read them, the first is {first}; {way_out}"
        )
    return model


def changes_a_weight(key: str, parts: Collection[str]) -> bool:
    """Whether a tensor without a place is in a model's layers or below one of its parts, or by its
    name of a quantized part.

    Args:
        key: its name.
        parts: names of the model's modules that have weights.
    """
    layers = {
        part[: part.index(".layers.") + len(".layers")] for part in parts if ".layers." in part
    }
    if any(key.startswith(f"{place}.") for place in {*parts, *layers}):
        return True
    names = {part.rpartition(".")[2] for part in parts}
    own = any(name in names or name == "model" for name in key.split("."))
    return own and QUANTIZED.search(key) is not None


def check_no_pickle(path: str) -> None:
    """Raise InputError for a checkpoint that has its weights as pickles alone.

    Source: of the files' names, transformers.utils.SAFE_WEIGHTS_NAME and its neighbours.
    """
    try:
        if not cached_file(path, CONFIG_NAME, **QUIETLY):
            return  # no checkpoint, which loading says; the hub is asked once
        safe = any(cached_file(path, name, **QUIETLY) for name in SAFE_FILES)
        pickled = not safe and any(cached_file(path, name, **QUIETLY) for name in PICKLES)
    except OSError:  # no network; loading says what is missing
        return
    if pickled:
        raise InputError(
            f"the weights of {path} are pickles (*.bin), which can run any code when they are "
            "read; set allow_pickle if you trust them, or give a checkpoint of safetensors"
        )


def checkpoint_eos(path: str, config: Any) -> set[int]:
    """Every id that ends a generation: of the checkpoint's generation config, or else its config.

    Raises:
        InputError: there is a generation config, and it cannot be read.
    """
    place, gguf = checkpoint(path)
    if gguf:
        return eos_of(None, config)
    try:
        return eos_of(GenerationConfig.from_pretrained(place), config)
    except OSError:  # a checkpoint need not have one
        return eos_of(None, config)
    except Exception as error:  # whatever a broken file makes of it
        raise InputError(f"bad generation_config.json in {path}: {brief(error)}") from error


def eos_of(generation_config: Any, config: Any) -> set[int]:
    """The eos_token_id, one or several, of a generation config; without one, of a config."""
    configured = getattr(generation_config or config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in ids if i is not None}


def choose_dtype(
    name: str, path: str, config: Any, device: str, cpu_kernels: str = "auto"
) -> torch.dtype:
    """What a checkpoint is computed in.

    Args:
        name: of devices.DTYPES; auto: float32 where a GGUF file's blocks can stay as they are,
            which are fewer bytes than bfloat16; else what the device is fast in.
        path: of the checkpoint.
        config: its, from load_config().
        device: as a device_map.
        cpu_kernels: as load().

    Raises:
        InputError: no dtype or kernels of that name.
    """
    if name == "auto" and device == "cpu" and path.endswith(".gguf"):
        kernels = choose_kernels(config, torch.float32, device, cpu_kernels)
        if isinstance(as_stored(path, torch.float32, kernels), GgufFile):
            return torch.float32
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return resolve_dtype(name, device if on_gpu else "cpu")


def as_stored(path: str, dtype: torch.dtype, kernels: Kernels) -> GgufFile | torch.dtype | None:
    """What a checkpoint's matrices can stay in while the native kernels compute in float32: the
    blocks of a GGUF file, or half precision; None where they are to be of the dtype."""
    if kernels.name != "native" or dtype != torch.float32:
        return None
    if not path.endswith(".gguf"):
        return half_of(path)
    file = read_gguf(path)
    why = why_not_as_stored(file)
    if why:
        warnings.warn(f"the weights of {path} are dequantized: {why}", stacklevel=1)
    return None if why else file


def load(
    path: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
    device_map: str | dict[str, Any] | None = None,
    cpu_kernels: str = "auto",
    cuda_graphs: str = "auto",
    keep_weights: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    **options: Any,
) -> LlamaKVForCausalLM:
    """Load a checkpoint of the Llama family for draft-tree decoding.

    Args:
        path: a local directory, a hub id, or a GGUF file.
        dtype: of weights, activations and cache, or its name; auto: as choose_dtype(). On native
            CPU kernels in float32, matrices stay as a GGUF file or a checkpoint in half precision
            has them; elsewhere they become of this dtype.
        device: cpu, cuda or cuda:N; auto: cuda where there is one.
        device_map: instead of a device anything that transformers' from_pretrained takes ("auto"
            spreads the layers over all devices; each layer's cache lies where the layer runs).
        cpu_kernels: what a model on the CPU runs on, see cpu/choice.py.
        cuda_graphs: whether steps are captured, see cuda_graphs.use_graphs.
        keep_weights: hold the weights as they are in the checkpoint, too, where the CPU kernels
            want them laid out otherwise; at twice the memory.
        trust_remote_code: let the checkpoint's own Python code run, where transformers would.
        allow_pickle: read weights that are there as pickles only (*.bin), which can hold code.
        options: passed on to from_pretrained (max_memory, offload_folder, …).

    Raises:
        InputError: no such checkpoint, not of an architecture covered, or without all weights; or
            kernels that do not run here, or no such device or dtype.
    """
    if device_map is None:
        device_map = resolve_device(device)
    place = str(device_map.get("") if isinstance(device_map, dict) else device_map)
    config = load_config(path, trust_remote_code=trust_remote_code)
    if isinstance(dtype, str):
        dtype = choose_dtype(dtype, path, config, place, cpu_kernels)
    kernels = choose_kernels(config, dtype, place, cpu_kernels)
    name = str(dtype).removeprefix("torch.")
    if place == "cpu" and not computes_in(name):
        warnings.warn(
            f"this CPU has no instructions for {name}, so prompts and draft trees take several "
            "times as long as in float32",
            stacklevel=2,
        )
    stored = None
    if not keep_weights and not any(option is not None for option in options.values()):
        stored = as_stored(path, dtype, kernels)
    if isinstance(stored, GgufFile):
        model = load_stored(config, stored, path)
    else:
        model = load_weights(
            LlamaKVForCausalLM,
            path,
            config=config,
            dtype=stored or dtype,
            device_map=device_map,
            allow_pickle=allow_pickle,
            **options,
        )
        if stored is not None:
            widen_all_but_matrices(model)
    model.eos_token_ids = checkpoint_eos(path, config)
    model.requires_grad_(False)
    return finish(model, kernels, cpu_kernels, cuda_graphs, keep_weights=keep_weights)
