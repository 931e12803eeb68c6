"""Matrix products of the native kernels: every stored form, on every instruction set that runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from model.logitspec import LlamaKVForCausalLM, compiler, generate, instruction_set
from model.logitspec.cpu import layers
from model.logitspec.cpu.choice import Kernels
from model.logitspec.cpu.layers import Matrix, block_columns
from model.logitspec.layout import finish
from model.logitspec.loading import load_weights
from model.logitspec.modeling_llama_kv import RMSNorm
from model.logitspec.stored import Quantized, StoredEmbedding, StoredLinear

from ..conftest import TINY, save_tiny
from .test_modeling import prefilled

HERE = Path(__file__).parent
COUNTS = (*range(1, 15), 64, 100)
MANY = 128  # rows from which the weights are scaled, and not the sums: matrices.h
# Outputs that fill no block, or one and a part of another; inputs of a group, and of uneven panels.
SHAPES = ((3, 32), (70, 96), (64, 768), (129, 1568))
HALVES = (torch.float32, torch.bfloat16, torch.float16)
FORMS = [*HALVES, *((b, g, m) for b in (4, 6, 8) for g in (16, 32) for m in (False, True))]
IDS = [*range(3, 60)]


@pytest.fixture(
    scope="module", params=["", *instruction_set.X86], ids=lambda name: name or "native"
)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set that the library is compiled for; "": all that there is."""
    lower: str = request.param
    if lower and instruction_set.X86[lower][1] not in instruction_set.cpu_info("flags").split():
        pytest.skip(f"this CPU has no {lower}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGITSPEC_ISA", lower)
        compiler.build.cache_clear()
        yield lower
    compiler.build.cache_clear()


def held(weight: torch.Tensor, form: Any) -> torch.Tensor | Quantized:
    """A matrix as a checkpoint would store it in a form of FORMS."""
    if isinstance(form, torch.dtype):
        return weight.to(form)
    bits, group, with_minimum = form
    groups = weight.unflatten(1, (-1, group))
    half = 2 ** (bits - 1)
    if not with_minimum:
        scale = groups.abs().amax(-1, keepdim=True) / half
        q = (groups / scale).round().clamp(-half, half - 1)
        return Quantized(q.flatten(1).to(torch.int8), bits, scale[..., 0])
    least = groups.amin(-1, keepdim=True)
    scale = (groups.amax(-1, keepdim=True) - least) / (2 * half - 1)
    q = ((groups - least) / scale).round() - half
    minimum = least + half * scale
    return Quantized(q.flatten(1).to(torch.int8), bits, scale[..., 0], minimum[..., 0])


def dequantized(weight: torch.Tensor | Quantized) -> torch.Tensor:
    return weight.dequantized() if isinstance(weight, Quantized) else weight.float()


def check_product(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | Quantized) -> None:
    """Against the product in double precision; what float32 sums lose is bounded by |x| |W|."""
    plain = dequantized(weight)
    wanted = x.double() @ plain.double().T
    size = plain.abs()
    if isinstance(weight, Quantized) and weight.minimum is not None:  # these cancel
        size = size + 2 * weight.minimum.abs().repeat_interleave(weight.group, dim=1)
    off = (found.double() - wanted).abs() / (x.abs() @ size.T)
    assert off.max() < 1e-6


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_products_are_those_of_the_dequantized_matrix(form: Any) -> None:
    torch.manual_seed(1)
    for out, inputs in SHAPES:
        weight = held(torch.randn(out, inputs) + 0.2, form)
        matrix, x = Matrix(weight), torch.randn(max(COUNTS), inputs)
        every = matrix(x)
        check_product(every, x, weight)
        for count in COUNTS:
            for first in (0, max(COUNTS) - count):  # the same bits in any company
                assert torch.equal(matrix(x[first : first + count]), every[first : first + count])
        many = torch.randn(MANY + 3, inputs)
        check_product(matrix(many), many, weight)
        ids = torch.tensor([0, out - 1, out // 2])
        torch.testing.assert_close(matrix.rows(ids), dequantized(weight)[ids], atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("kernels")
def test_bfloat16_products() -> None:
    """Inputs and results are rounded to it, sums are not."""
    torch.manual_seed(2)
    for out, inputs in SHAPES:
        weight = torch.randn(out, inputs).bfloat16()
        matrix = Matrix(weight, torch.bfloat16)
        x = torch.randn(max(COUNTS), inputs).bfloat16()
        every = matrix(x)
        wanted = x.float() @ weight.float().T
        torch.testing.assert_close(every.float(), wanted, atol=1e-4, rtol=2**-8)
        for count in COUNTS:
            assert torch.equal(matrix(x[:count]), every[:count])
        ids = torch.tensor([out - 1, 0])
        assert torch.equal(matrix.rows(ids), weight[ids])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("form", [torch.float32, torch.float16, (4, 32, True), (6, 16, False)])
def test_products_behind_a_norm(form: Any) -> None:
    torch.manual_seed(3)
    weight, norm = held(torch.randn(70, 160), form), RMSNorm(160, 1e-5)
    nn.init.uniform_(norm.weight, 0.5, 2)
    x = torch.randn(9, 160)
    with torch.inference_mode():
        check_product(Matrix(weight, norm=norm)(x), norm(x), weight)


@pytest.mark.usefixtures("kernels")
def test_what_a_matrix_has_not() -> None:
    matrix = Matrix(torch.randn(40, 64))
    assert matrix(torch.empty(0, 64)).shape == (0, 40)
    assert matrix.rows(torch.empty(0, dtype=torch.int64)).shape == (0, 64)
    for missing in (-1, 40, 10**12):
        with pytest.raises(IndexError, match="a row outside the 40 of a matrix"):
            matrix.rows(torch.tensor([0, missing]))
    for weight in (torch.randn(40, 64), held(torch.randn(40, 64), (4, 32, False))):
        with pytest.raises(ValueError, match=r"in a model that is torch\.bfloat16"):
            Matrix(weight, torch.bfloat16)


def test_a_block_is_four_vectors(kernels: str) -> None:
    """So the fixture does force an instruction set."""
    if kernels:
        assert block_columns() == {"avx2": 32, "avx512": 64}[kernels]


class Held:
    """A StoredMatrix in memory."""

    def __init__(self, weight: torch.Tensor | Quantized) -> None:
        self.weight, self.shape = weight, (weight.shape[0], weight.shape[1])

    def read(self) -> torch.Tensor | Quantized:
        return self.weight

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return dequantized(self.weight)[ids]


def saved(folder: Path, head_dim: int) -> str:
    """A tiny model whose sizes are no multiples of all blocks."""
    shape = {"hidden_size": 192, "head_dim": head_dim, "intermediate_size": 864}
    more = {"attention_bias": True, "mlp_bias": True, "initializer_range": 0.2}
    return save_tiny(folder / "m", LlamaConfig(**TINY | shape | more))


def twins(path: str) -> tuple[LlamaKVForCausalLM, LlamaKVForCausalLM]:
    """A model whose matrices are stored in forms that differ, and its dequantized twin."""
    stored, plain = (
        load_weights(LlamaKVForCausalLM, path, dtype=torch.float32).requires_grad_(False)
        for _ in range(2)
    )
    modules = [name for name, m in stored.named_modules() if isinstance(m, nn.Linear)]
    for i, name in enumerate(["model.embed_tokens", *modules]):
        module = stored.get_submodule(name)
        weight = held(module.weight, FORMS[i % len(FORMS)])
        plain.get_submodule(name).weight.data = dequantized(weight)
        parent, _, leaf = name.rpartition(".")
        embeds = isinstance(module, nn.Embedding)
        new = StoredEmbedding(Held(weight)) if embeds else StoredLinear(Held(weight), module.bias)
        setattr(stored.get_submodule(parent), leaf, new)
    stored.compute_dtype = torch.float32
    return (
        finish(stored, Kernels("native"), "native", "off", keep_weights=False),
        finish(plain, Kernels("plain"), "plain", "off", keep_weights=False),
    )


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("head_dim", [64, 128, 192])
def test_a_model_of_many_forms_is_its_dequantized_twin(head_dim: int, tmp_path: Path) -> None:
    stored, plain = twins(saved(tmp_path, head_dim))
    found, wanted = prefilled(stored, IDS)[1], prefilled(plain, IDS)[1]
    torch.testing.assert_close(found, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=0)
    for method in ("vanilla", "logitspec"):
        tokens = [
            generate(model, IDS[:20], method, max_new_tokens=40, eos_token_ids=()).tokens
            for model in (stored, plain)
        ]
        assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    "what", ["threads", "decoders", "fork", "fork_beside_others", "no_threads"]
)
def test_threads_and_processes(what: str, tmp_path: Path) -> None:
    """In a process of its own: what waits for ever there is ended by its alarm."""
    command = [sys.executable, "-m", "tests.model.crowd", what, saved(tmp_path, 64)]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_arm(tmp_path: Path) -> None:
    """layers.cpp beside plain loops, compiled for ARM and emulated."""
    gcc, qemu = "aarch64-linux-gnu-g++", "qemu-aarch64"
    for program in (gcc, qemu):
        if not shutil.which(program):
            pytest.skip(f"there is no {program}")
    flags = [flag.format(target="armv8.2-a") for flag in layers.FLAGS]
    source, program = HERE / "plain_loops.cpp", str(tmp_path / "plain_loops")
    include = f"-I{layers.SOURCE.parent}"
    subprocess.run(
        [gcc, "-std=c++20", "-static", *flags, include, str(source), "-o", program], check=True
    )
    done = subprocess.run([qemu, program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "all as plain loops\n")
