"""A proposer for vLLM that begins with a state."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.asking.target import load_tokenizer
from model.logitspec import CalibratedDrafter
from model.logitspec.drafters.calibrated.chains import Chains
from model.logitspec.errors import InputError
from model.logitspec.states import tokenizer_fingerprint, write_state
from model.logitspec.vllm import LogitSpecProposer, proposers

from .fake_vllm import answer, config
from .test_vllm import engine, not_needed, prompt


@pytest.mark.parametrize("core", ["python", "native"])
def test_a_state_is_known_to_all_requests(core: str) -> None:
    """What an earlier answer said is drafted, and what its rows say."""
    text = answer(prompt(3), 80)
    learnt = CalibratedDrafter(drafting_core=core)
    learnt.warm({"answers": np.array([*prompt(3), *text, -1])})
    row = [99, 98, 97, 96, 95, 94, 93, 92]
    state = {**learnt.state(), "greedy.rows": np.array([60, len(row), *row])}
    chains = Chains(6, drafting_core=core)
    chains.begin_with(state)
    for chain in (chains.begin(prompt(1)), chains.begin(prompt(2))):
        chain.skip(text[20:25])
        assert chain.draft(text[25], ())[0][:3] == text[26:29]
        chain.skip([text[25]])
        assert chain.draft(60, ())[0][:1] == [99]
    unlike = CalibratedDrafter(row_width=5, drafting_core=core)
    with pytest.raises(InputError, match="of a drafter with other options"):
        chains.begin_with(unlike.state())


def test_the_calibrated_proposer_begins_with_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = CalibratedDrafter()
    learnt.warm({"answers": np.array([*prompt(7), *answer(prompt(7), 100), -1])})
    file = tmp_path / "state.npz"
    monkeypatch.setenv("LOGITSPEC_EVIDENCE", str(file))
    monkeypatch.setattr(proposers, "fingerprint_of", lambda _: "mine")
    with pytest.raises(InputError, match=r"No such file.*give another file as LOGITSPEC_EVIDENCE"):
        engine()
    steps = []
    for tokenizer in ("yours", "mine"):
        with file.open("wb") as out:
            write_state(out, "calibrated", learnt.state(), tokenizer)
        if tokenizer == "yours":
            with pytest.raises(InputError, match="another tokenizer"):
                engine()
    for name in (str(file), ""):
        monkeypatch.setenv("LOGITSPEC_EVIDENCE", name)
        run = engine()
        request = run.add("a", prompt(7), 100)
        run.run()
        assert request.answer == answer(prompt(7), 100)
        steps.append(run.steps)
    assert steps[0] < 0.6 * steps[1]
    LogitSpecProposer(config(), rank=0, watch=not_needed)  # which has no such evidence


def test_the_tokenizer_that_a_state_is_compared_with(chat_path: str) -> None:
    model = SimpleNamespace(tokenizer=chat_path, tokenizer_revision=None, trust_remote_code=False)
    expected = tokenizer_fingerprint(load_tokenizer(chat_path))
    assert proposers.fingerprint_of(SimpleNamespace(model_config=model)) == expected
    model.skip_tokenizer_init = True
    assert proposers.fingerprint_of(SimpleNamespace(model_config=model)) is None
