"""A GGUF file as the target of the commands: dtype, tokenizer, template, the baseline beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from evaluation.asking.engines import Models
from evaluation.asking.settings import TargetSettings
from evaluation.asking.target import Target, load_tokenizer
from model.logitspec.fastest import choose_kernels
from model.logitspec.loading import load_config


@pytest.fixture(scope="module")
def alone(default_gguf: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The default model's GGUF file in a folder of its own."""
    return shutil.copy(default_gguf, tmp_path_factory.mktemp("alone"))


def target(path: str, dtype: str = "auto") -> Target:
    return Target.resolve(TargetSettings(path, device="cpu", dtype=dtype))


def test_prompts_are_the_same_with_the_tokenizer_beside_it_and_without(
    default_model_path: str, default_gguf: str, alone: str
) -> None:
    assert not (Path(alone).parent / "tokenizer.json").exists()
    wanted = target(default_model_path)
    for path in (default_gguf, alone):
        found = target(path)
        assert str(found.prompts) == str(wanted.prompts)
        for text in ("Hello there, été 1234!", "def f(x):\n\treturn x  # ünïcode"):
            assert found.prompts.start().ask(text) == wanted.prompts.start().ask(text)
        assert found.eos_token_ids == wanted.eos_token_ids == {2}
    beside = load_tokenizer(default_gguf)
    assert beside.name_or_path == default_model_path


def test_it_is_computed_in_float32_and_transformers_has_a_model_of_its_own(
    default_gguf: str,
) -> None:
    native = choose_kernels(load_config(default_gguf), torch.float32, "cpu").name == "native"
    found = target(default_gguf)
    assert found.dtype == torch.float32 or not native
    models = Models(found, shared=True)
    assert models.shared is not native
    assert not Models(target(default_gguf, "bfloat16"), shared=False).shared
    assert Models(target(default_gguf, "bfloat16"), shared=True).shared


@pytest.mark.slow  # transformers parses the file several times
def test_transformers_model_is_of_the_same_dtype(default_gguf: str) -> None:
    found = target(default_gguf)
    assert Models(found, shared=True).hf.dtype == found.dtype
