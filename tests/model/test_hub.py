"""The folder hub/, which can be pushed to the hub as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
HUB = ROOT / "hub"


def test_its_card_does_what_it_says(default_model_path: str) -> None:
    """The code in the card, with the checkpoint and the folder that are here."""
    text = (HUB / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", default_model_path)
    code = code.replace("org/logitspec", str(HUB)).replace("from_pretrained(name)", FLOAT32)
    names: dict[str, Any] = {"torch": torch}
    exec(code, names)
    model, inputs = names["model"], names["inputs"]
    wanted = model.generate(**inputs, max_new_tokens=100)
    assert names["output"].tolist() == wanted.tolist()
    wanted = wanted[:, : inputs["input_ids"].shape[1] + 32]
    for method in re.findall(r'`"(\S+)"`', text):
        found = model.generate(
            **inputs, max_new_tokens=32, custom_generate=str(HUB), trust_remote_code=True,
            method=method, return_dict_in_generate=True,
        )  # fmt: skip
        assert found.sequences.tolist() == wanted.tolist()
        assert found.decoding.mean_accepted_tokens > 1


FLOAT32 = "from_pretrained(name, dtype=torch.float32)"


def test_code_of_the_hub_is_not_run_unasked(tiny_path: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        model.generate(torch.tensor([[3, 4]]), custom_generate=str(HUB), trust_remote_code=False)


def test_it_is_as_it_should_be_pushed() -> None:
    files = {str(path.relative_to(HUB)) for path in HUB.rglob("*") if path.suffix != ".pyc"}
    assert files - {"custom_generate/__pycache__"} == {
        "README.md", "custom_generate", "custom_generate/generate.py",
        "custom_generate/requirements.txt",
    }  # fmt: skip
    head = (HUB / "README.md").read_text().split("---")[1]
    assert "- custom_generate" in head and "library_name: transformers" in head
    (bibtex,) = re.findall(r"```bibtex\n(.*?)```", (HUB / "README.md").read_text(), re.DOTALL)
    assert bibtex in (ROOT / "README.md").read_text()
