"""Which kernels run where, what they free, and that they compute the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from evaluation.asking.engines import transformers_twin
from model.logitspec import (
    DraftTree,
    InputError,
    KVCache,
    LlamaKVForCausalLM,
    compiler,
    fastest,
    instruction_set,
    load,
    storage,
)
from model.logitspec.cpu import layers
from model.logitspec.cpu.layers import CHUNK, Matrix, best_tokens, layers_library
from model.logitspec.cpu.packed import packed, why_not_packable
from model.logitspec.fastest import choose_kernels
from model.logitspec.layout import matrix
from model.logitspec.linear import Linear

from ..conftest import WIDE, save_tiny
from .test_modeling import prefilled, random_tree, tree_logits

CPU = torch.device("cpu")
IDS = [*range(3, 60)]


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The native layers are looked for anew in the test, and after it."""
    compiler.build.cache_clear()
    yield monkeypatch
    compiler.build.cache_clear()


@pytest.fixture
def rebuilt(looked_up: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The native layers are compiled anew in the test."""
    looked_up.setenv("XDG_CACHE_HOME", str(tmp_path))
    return looked_up


@pytest.fixture
def equal_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that all take as long, so that which is chosen depends on nothing else."""
    monkeypatch.setattr(
        fastest, "costs", lambda config, dtype, names: dict.fromkeys(names, [1.0] * 3)
    )


@pytest.mark.parametrize(
    ("costs", "name", "said"),
    [
        ({"native": [2, 3, 9], "packed": [3, 3, 9], "plain": [5, 6, 9]}, "native", "native"),
        ({"native": [2, 3.2, 9], "packed": [3, 3, 9], "plain": [5, 6, 9]}, "native", "native"),
        (
            {"native": [2, 6, 9], "packed": [2, 3, 9], "plain": [5, 6, 9]},
            "packed",
            "packed (not native: a step over 8 nodes takes 2.0 times that of packed)",
        ),
        ({"native": [2, 3, 30], "packed": [9, 3, 9], "plain": [3, 3, 12]}, "plain", "of packed;"),
    ],
)
def test_the_kernels_that_cost_least_are_chosen(
    monkeypatch: pytest.MonkeyPatch, costs: dict[str, list[float]], name: str, said: str
) -> None:
    monkeypatch.setattr(fastest, "costs", lambda *args: costs)
    config = LlamaConfig(**WIDE)
    chosen = choose_kernels(config, torch.float32, "cpu")
    assert chosen.name == name
    assert said in str(chosen)
    assert choose_kernels(config, torch.float32, "cpu", "native").name == "native"
    assert str(choose_kernels(config, torch.float32, "cuda:0")) == "plain"


def test_what_kernels_cost_is_measured_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(storage, "cache_folder", lambda: tmp_path)
    measure, calls = fastest.measure, []
    monkeypatch.setattr(fastest, "measure", lambda *args: calls.append(args) or measure(*args))
    config, names = LlamaConfig(**WIDE), ["packed", "plain"]
    found = []
    for _ in range(2):
        monkeypatch.setattr(fastest, "KNOWN", {})  # as another process
        found.append(fastest.costs(config, torch.float32, names))
    assert len(calls) == 1 and found[0] == found[1]
    assert set(found[0]) == set(names)
    assert all(seconds > 0 for costs in found[0].values() for seconds in costs)
    (stored,) = tmp_path.glob("kernels-*.json")
    stored.write_text(stored.read_text().replace('"packed":', '"other":'))
    monkeypatch.setattr(fastest, "KNOWN", {})
    fastest.costs(config, torch.float32, names)
    assert len(calls) == 2


def test_the_default_model_runs_on_native_kernels(default_model_path: str) -> None:
    config = AutoConfig.from_pretrained(default_model_path)
    assert choose_kernels(config, torch.float32, "cpu").name == "native"


@pytest.mark.usefixtures("equal_costs")
@pytest.mark.parametrize(
    ("change", "dtype", "reason"),
    [
        ({}, torch.float64, "the weights are torch.float64"),
        ({"hidden_act": "gelu"}, torch.float32, "the activation is gelu, not silu"),
        ({"hidden_size": 96}, torch.float32, "the hidden size 96 is no multiple of 64"),
        ({"head_dim": 48}, torch.float32, "the head size 48 is no multiple of 64"),
        ({"intermediate_size": 40}, torch.float32, "the intermediate size 40 is no multiple"),
        (
            {"num_attention_heads": 49, "num_key_value_heads": 1, "hidden_size": 49 * 64},
            torch.float32,
            "49 query heads share a key head, more than 48",
        ),
    ],
)
def test_what_the_native_layers_do_not_know_is_passed_over(
    change: dict[str, Any], dtype: torch.dtype, reason: str
) -> None:
    config = LlamaConfig(**WIDE | change)
    chosen = choose_kernels(config, dtype, "cpu")
    assert chosen.name == ("packed" if dtype == torch.float32 else "plain")
    assert reason in chosen.passed_over["native"]
    with pytest.raises(InputError, match="native CPU kernels do not run here"):
        choose_kernels(config, dtype, "cpu", "native")


def test_kernels_that_are_not_there_are_refused() -> None:
    config = LlamaConfig(**WIDE)
    with pytest.raises(InputError, match="'fast' are not known; give auto, native, packed, plain"):
        choose_kernels(config, torch.float32, "cpu", "fast")
    with pytest.raises(InputError, match="packed CPU kernels do not run here: the device is cuda"):
        choose_kernels(config, torch.float32, "cuda:0", "packed")
    assert "oneDNN says" in why_not_packable(torch.float64)


@pytest.mark.usefixtures("equal_costs")
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "there is no C++ compiler"),
        ("false", "false does not compile"),
        ("'", "cannot be stored or loaded: No closing quotation"),
    ],
)
def test_without_a_compiler_weights_are_packed(
    rebuilt: pytest.MonkeyPatch, compiler: str, reason: str
) -> None:
    rebuilt.setenv("CXX", compiler)
    chosen = choose_kernels(LlamaConfig(**WIDE), torch.float32, "cpu")
    assert chosen.name == "packed"
    assert reason in str(chosen)


@pytest.mark.usefixtures("equal_costs")
def test_an_unwritable_cache_folder_is_a_reason(
    rebuilt: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    rebuilt.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "cannot be stored" in str(choose_kernels(LlamaConfig(**WIDE), torch.float32, "cpu"))


def test_another_compiler_or_cpu_compiles_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.cpp"
    source.write_text("int a;\n")
    compilers = []
    for name in ("one", "other"):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho {name} 1.0\n")
        script.chmod(0o755)
        compilers.append([str(script)])
    prints = [compiler.fingerprint(each, ["c++", "a.cpp"], source) for each in compilers]
    monkeypatch.setattr(compiler, "features", lambda: frozenset({"an old one"}))
    prints.append(compiler.fingerprint(compilers[0], ["c++", "a.cpp"], source))
    assert len(set(prints)) == 3
    assert prints[2] == compiler.fingerprint(compilers[0], ["c++", "a.cpp"], source)


def test_the_layers_are_compiled_once(rebuilt: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = layers_library()
    (compiled,) = (tmp_path / "logitspec").iterdir()
    rebuilt.setattr(compiler.subprocess, "run", refuse_to_compile(compiler.subprocess.run))
    compiler.build.cache_clear()
    assert layers_library()._name == first._name == str(compiled)


def refuse_to_compile(run: Any) -> Any:
    def fake(command: list[str], **options: Any) -> Any:
        assert str(layers.SOURCE) not in command
        return run(command, **options)

    return fake


def test_a_changed_header_is_compiled_anew(rebuilt: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "answer.cpp"
    source.write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER; }')
    for answer in (1, 2):
        (tmp_path / "answer.h").write_text(f"#define ANSWER {answer}")
        compiler.build.cache_clear()
        assert compiler.library(source, ()).answer() == answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lower", instruction_set.X86)
def test_lower_instruction_sets_compute_the_same(
    looked_up: pytest.MonkeyPatch, wide_path: str, dtype: torch.dtype, lower: str
) -> None:
    if instruction_set.X86[lower][1] not in instruction_set.cpu_info("flags").split():
        pytest.skip(f"this CPU has no {lower}")
    expected = prefilled(load(wide_path, dtype=dtype, cpu_kernels="native"), IDS)[1].float()
    looked_up.setenv("LOGITSPEC_ISA", lower)
    compiler.build.cache_clear()
    found = prefilled(load(wide_path, dtype=dtype, cpu_kernels="native"), IDS)[1].float()
    tolerance = (1e-4 if dtype == torch.float32 else 0.05) * expected.abs().max().item()
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_rows_beside_it(wide_path: str, dtype: torch.dtype) -> None:
    """Bit for bit: a root's logits alone, and as one of 64 nodes."""
    model = load(wide_path, dtype=dtype, cpu_kernels="native")
    cache = prefilled(model, IDS)[0]
    tree = random_tree(random.Random(5), 97, 64)
    many = tree_logits(model, cache, tree)
    alone = tree_logits(model, cache, DraftTree(tree.tokens[0], 1))
    assert torch.equal(many[:1], alone)


def test_native_bfloat16_is_nearer_to_float32_than_plain(default_model_path: str) -> None:
    exact = load(default_model_path, dtype=torch.float32)
    ids = [(7919 * i) % 40_000 for i in range(80)]
    expected = prefilled(exact, ids)[1]
    errors = {
        kernels: (
            prefilled(load(default_model_path, dtype=torch.bfloat16, cpu_kernels=kernels), ids)[1]
            - expected
        ).abs().mean().item()
        for kernels in ("plain", "native")
    }  # fmt: skip
    assert errors["native"] < errors["plain"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kernels", ["packed", "native"])
def test_weights_are_freed_unless_they_are_shared(tmp_path: Path, kernels: str, tied: bool) -> None:
    config = LlamaConfig(**WIDE | {"tie_word_embeddings": tied, "attention_bias": True})
    path = save_tiny(tmp_path / "m", config)
    plain = load(path, dtype=torch.float32, cpu_kernels="plain")
    expected = prefilled(plain, IDS)[1]
    freed = load(path, dtype=torch.float32, cpu_kernels=kernels)
    held = {name for name, p in freed.named_parameters() if not p.is_meta}
    matrices = {name for name, p in plain.named_parameters() if p.dim() == 2}
    assert held & matrices == ({"model.embed_tokens.weight"} if kernels == "packed" else set())
    assert freed.lm_head.weight.is_meta is not (tied and kernels == "packed")
    shared = load(path, dtype=torch.float32, cpu_kernels=kernels, keep_weights=True)
    assert not any(p.is_meta for p in shared.parameters())
    with torch.inference_mode():
        twin = transformers_twin(shared)(torch.tensor([IDS])).logits[0]
    for logits in (prefilled(freed, IDS)[1], prefilled(shared, IDS)[1], twin):
        largest = expected.abs().max().item()
        torch.testing.assert_close(logits, expected, atol=1e-3 * largest, rtol=0)


def test_the_packed_product_keeps_its_bias() -> None:
    owner = torch.nn.Module()
    owner.plain = plain = torch.nn.Linear(64, 32)
    linear = Linear(owner, "plain")
    x = torch.randn(5, 64)
    with torch.inference_mode():
        expected = plain(x)
        linear.fuse()
        linear.product = packed(matrix(linear), linear.bias)
        linear.release()
        torch.testing.assert_close(linear(x), expected)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 13, 64, 100])
@pytest.mark.parametrize("shape", [(64, 64), (97, 128), (200, 192)])
def test_the_native_product(shape: tuple[int, int], rows: int) -> None:
    weight, x = torch.randn(shape), torch.randn(rows, shape[1])
    torch.testing.assert_close(Matrix(weight)(x), x @ weight.T, atol=1e-4, rtol=0)
    half = Matrix(weight.bfloat16(), torch.bfloat16)(x.bfloat16())
    expected = x.bfloat16().float() @ weight.bfloat16().float().T
    torch.testing.assert_close(half.float(), expected, atol=0.2, rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocab", "count"), [(1, 5000, 64), (7, 97, 1), (33, 640, 8)])
def test_the_best_tokens(rows: int, vocab: int, count: int, dtype: torch.dtype) -> None:
    random_rows = torch.randn(rows, vocab).to(dtype)
    tied = random_rows.clamp(max=0.5)  # many equal maxima
    for logits in (random_rows, tied, -random_rows.abs(), torch.full_like(tied, -torch.inf)):
        expected = [
            sorted(range(vocab), key=lambda t, row=row: (-row[t], t))[:count]  # type: ignore[misc]
            for row in logits.float().tolist()
        ]
        assert best_tokens(logits, count).tolist() == expected
    assert torch.equal(best_tokens(tied, 1)[:, 0], tied.max(dim=-1).indices)


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 20])
def test_long_prompts_go_through_in_pieces(wide_path: str, length: int) -> None:
    ids = [3 + (7919 * i) % 90 for i in range(length)]
    found, expected = (
        prefilled(load(wide_path, dtype=torch.float32, cpu_kernels=name), ids)[1]
        for name in ("native", "plain")
    )
    largest = expected.abs().max().item()
    torch.testing.assert_close(found, expected, atol=1e-4 * largest, rtol=0)


def test_tensors_that_are_not_the_models_are_refused(wide_path: str) -> None:
    model = load(wide_path, dtype=torch.float32, cpu_kernels="native")
    other = KVCache([CPU] * 2, 2, 64, 64, torch.float32)  # a layer too few
    with pytest.raises(ValueError, match="is not of this model"):
        model(torch.tensor([3]), torch.tensor([0]), other, last_position=0)
    cache = model.new_cache(64)
    with pytest.raises(ValueError, match="for 2 tokens"):
        model(
            torch.tensor([3, 4]), torch.tensor([0, 1]), cache,
            last_position=1, tree_mask=torch.ones(3, 3, dtype=torch.bool),
        )  # fmt: skip


@pytest.mark.usefixtures("equal_costs")
def test_matrices_that_are_not_plain_linears_run_on_plain_kernels(
    wide_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaled(torch.nn.Linear):
        """As a quantizer or an adapter puts in a linear's place."""

    begin = LlamaKVForCausalLM.eval

    def replaced(model: LlamaKVForCausalLM) -> LlamaKVForCausalLM:
        model.model.layers[1].mlp.down_proj.__class__ = Scaled
        return begin(model)

    expected = prefilled(load(wide_path, dtype=torch.float32, cpu_kernels="plain"), IDS)[1]
    monkeypatch.setattr(LlamaKVForCausalLM, "eval", replaced)
    model = load(wide_path, dtype=torch.float32)
    assert model.kernels.name == "plain"
    assert "not all matrices of the model are plain linears" in str(model.kernels)
    torch.testing.assert_close(prefilled(model, IDS)[1], expected)
    with pytest.raises(InputError, match="native CPU kernels do not run here: not all matrices"):
        load(wide_path, dtype=torch.float32, cpu_kernels="native")


def test_threads_may_change(wide_path: str) -> None:
    model: LlamaKVForCausalLM = load(wide_path, dtype=torch.float32, cpu_kernels="native")
    expected = prefilled(model, IDS)[1]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(prefilled(model, IDS)[1], expected)
    finally:
        torch.set_num_threads(threads)
