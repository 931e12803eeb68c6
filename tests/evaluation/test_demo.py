"""The demo: the terminal's and the page's, and where drafts come from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from evaluation.asking.settings import ChatSettings
from evaluation.chatting.page import make_app
from evaluation.demo import Answer, main
from model.logitspec import (
    CalibratedDrafter,
    DecodingResult,
    DraftTree,
    LogitSpecDrafter,
    RacerDrafter,
    Sampling,
    TokenRecyclingDrafter,
    decode,
)
from model.logitspec.decoding import Step
from model.logitspec.origins import CONTINUED, COPIED, GUESSED, NEXT, ORIGINS, RETRIEVED

from .serving import HELLO, make_chat, serving

ROOT = Path(__file__).parents[2]


def test_logitspecs_drafts_come_from_three_places() -> None:
    drafter = LogitSpecDrafter(max_ngram_size=2, num_pred_tokens=3, draft_tree_capacity=9)
    drafter.reset([1, 2, 3, 4, 5, 1, 2])
    tree = drafter.draft(3, [3, 4, 9, 1])
    #  3 -> 4 5 1 (retrieved) | guess 4, then 5 1 2 | guess 9 | ...
    assert tree.tokens == [3, 4, 5, 1, 4, 5, 1, 2, 9]
    assert drafter.origins(tree) == [
        NEXT, *[RETRIEVED] * 3, GUESSED, *[CONTINUED] * 3, GUESSED,
    ]  # fmt: skip


def test_copied_logits_are_told_from_what_is_retrieved() -> None:
    racer = RacerDrafter(draft_tree_capacity=8, breadth=2)
    racer.reset([1, 2, 3, 1, 2], [[2, 7]] * 5)
    tree = racer.draft(3, [])
    origins = racer.origins(tree)
    assert origins[0] == NEXT and origins[1] == RETRIEVED and origins[-1] == COPIED
    assert len(origins) == len(tree)
    recycling = TokenRecyclingDrafter()
    recycling.reset([1, 2], [])
    tree = recycling.draft(3, [])
    recycling.observe(tree, [0], [[4, 5]] * len(tree))
    tree = recycling.draft(3, [])
    assert set(recycling.origins(tree)[1:]) == {COPIED}


@pytest.mark.parametrize("core", ["native", "python"])
def test_calibrateds_drafts_come_from_where_the_evidence_is(core: str) -> None:
    drafter = CalibratedDrafter(draft_tree_capacity=20, row_width=2, drafting_core=core)
    drafter.reset([1, 2, 3, 1, 2, 3, 1, 2])
    tree = drafter.draft(9, [9, 2, 11])
    drafter.observe(tree, [0], [[30, 31], *[[]] * (len(tree) - 1)])
    tree = drafter.draft(2, [2, 3, 1])
    by_token = {
        (tree.depths[node], tree.tokens[node]): origin
        for node, origin in reversed(list(enumerate(drafter.origins(tree))))
    }
    assert by_token[0, 2] == NEXT
    assert by_token[1, 3] == RETRIEVED  # it followed 1 2
    assert by_token[1, 1] == GUESSED
    assert by_token[2, 2] == CONTINUED  # after the guess 1, which no n-gram has after 9 2
    drafter.reset([7, 8])
    tree = drafter.draft(9, [9])
    assert drafter.origins(tree)[tree.tokens.index(30)] == COPIED


def test_every_step_tells_where_its_nodes_come_from(tiny: Any) -> None:
    steps: list[Step] = []
    result = decode(
        tiny, [5, 6, 7, 8, 5, 6, 7], LogitSpecDrafter(), max_new_tokens=33, on_step=steps.append
    )
    assert [len(step.origins) for step in steps] == result.tree_sizes
    for step in steps:  # trees that were cut at the end, too
        assert step.origins[0] == NEXT and set(step.origins[1:]) <= set(ORIGINS[1:])
        for node, origin in enumerate(step.origins):
            assert origin != GUESSED or step.tree.depths[node] == 1


def demo(path: str, *flags: str) -> int:
    argv = ["--model-path", path, "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "24"]
    try:
        return main([*argv, "--method", "logitspec@16", *flags])
    except SystemExit as exit_:
        return int(exit_.code or 0)


@pytest.mark.parametrize("kind", ["svg", "html"])
def test_prompts_are_answered_compared_and_exported(
    chat_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    out = tmp_path / f"demo.{kind}"
    flags = ["--prompt", "Who?", "--prompt", "Why?", "--compare", "--record", str(out)]
    assert demo(chat_path, *flags) == 0
    said = capsys.readouterr().out
    assert said.count("MAT ") == 4 and said.count("vanilla: the same text") == 2
    assert said.count("24 tokens in 24 steps of 1.0 nodes") == 2
    content = out.read_text()
    assert f"<{kind}" in content and "retrieved" in content and "Who?" in content


def test_what_is_typed_is_no_markup(chat_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(chat_path, "--prompt", "What does [/i] in x[0] mean?") == 0
    assert "> What does [/i] in x[0] mean?" in capsys.readouterr().out


def test_a_conversation_at_the_keyboard(
    chat_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["/vanilla", "", "Hello?", "/vanilla", "/what", "/new", "word " * 600, "Hi?"]
    typed += ["half a pair: \udcff", "/quit"]
    lines = iter(typed)
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert demo(chat_path, "--system", "Be brief.") == 0
    said = capsys.readouterr().out
    assert "nothing was asked yet" in said and said.count("that was not UTF-8 text") == 1
    assert said.count("MAT ") == 3 and "vanilla: the same text" in said
    assert said.count("/vanilla: the last prompt again") == 2
    assert "exceed the model's 512 positions" in " ".join(said.split())


def test_control_characters_do_not_double_the_text() -> None:
    answer = Answer()
    answer.add(Step(DraftTree(5, 1), [0], [NEXT]), ["a\rb\x07c"])
    answer.end("a\rb\x07cd", DecodingResult(1, [5], prefill_seconds=1.0))
    assert answer.text.plain == "abcd"


def test_bad_flags_of_the_demo(chat_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, complaint in (
        (["--record", "x.png"], "--record x.png is neither FILE.svg nor FILE.html"),
        (["--record", "no/where/x.svg"], "cannot write no/where/x.svg"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--method", "nothing"], "no method 'nothing'"),
        (["--port", "x"], "is not a whole number"),
        (["--web"], "--prompt is for the terminal; leave it out with --web"),
        (["--prompt", "\udcff"], "not UTF-8 text"),
        (["--prompt", "\udcff😀"], "not UTF-8 text"),
    ):
        assert demo(chat_path, *flags, "--prompt", "x") == 2
        said = capsys.readouterr().err
        assert complaint in said and "Traceback" not in said


@pytest.fixture(scope="module")
def page(chat_path: str) -> Iterator[str]:
    settings = ChatSettings("logitspec@16", max_new_tokens=24)
    chat = make_chat(chat_path, method="logitspec@16")
    with serving(make_app(chat, settings, Sampling())) as address:
        yield address
    chat.close()


def events(address: str, **body: Any) -> list[dict[str, Any]]:
    answer = httpx.post(f"{address}/answer", json=body, timeout=60)
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


def test_the_page_is_told_every_step(page: str) -> None:
    html = httpx.get(page)
    assert html.status_code == 200 and '"method": "logitspec@16"' in html.text
    told = events(page, messages=HELLO)
    steps = [event for event in told if "tokens" in event]
    text = "".join(event["text"] for event in told if "text" in event)
    assert sum(len(step["path"]) for step in steps) == 24
    pieces = "".join(piece for step in steps for piece in step["pieces"])
    assert len(pieces) > 10 and text.startswith(pieces)
    assert told[-1]["end"] == "length"
    for step in steps:
        assert len(step["tokens"]) == len(step["parents"]) == len(step["origins"])
    plain = events(page, messages=HELLO, vanilla=True)
    assert all(len(event["tokens"]) == 1 for event in plain if "tokens" in event)
    assert "".join(event["text"] for event in plain if "text" in event) == text


def test_the_page_refuses_what_it_cannot_answer(page: str) -> None:
    for body, complaint in (
        ({"messages": []}, "messages"),
        ({}, "messages: Field required"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "exceed the model's"),
    ):
        answer = httpx.post(f"{page}/answer", json=body)
        assert answer.status_code == 400 and complaint in answer.json()["error"]["message"]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(page: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(page)
        tab.fill("#prompt", "Who are <b>you</b>?")
        tab.keyboard.press("Enter")
        tab.wait_for_selector(".numbers[data-done]", timeout=30_000)
        assert "24 tokens in" in tab.inner_text(".numbers")
        assert tab.inner_text(".user") == "Who are <b>you</b>?"
        assert tab.locator("#tree svg g.kept").count() >= 1
        last = tab.inner_text("#which")
        for _ in range(3):  # the last trees are cut
            tab.click("#back")
        assert tab.inner_text("#which") != last
        assert tab.locator("#tree svg g").count() > 1
        # A tree that is wider than its panel is drawn smaller, or scrolls in it and says so.
        shown_and_whole = (
            "(svg => [svg.getBoundingClientRect().width, svg.viewBox.baseVal.width])"
            "(document.querySelector('#tree svg'))"
        )
        for size in (1280, 700, 2000):
            tab.set_viewport_size({"width": size, "height": 800})
            tab.evaluate("draw(0)")
            room = tab.evaluate("document.querySelector('#tree').clientWidth")
            shown, whole = tab.evaluate(shown_and_whole)
            assert shown == pytest.approx(whole * min(1, max(0.75, room / whole)), abs=1)
            assert ("scroll" in tab.inner_text("#which")) is (shown > room + 0.01)
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tab.click("#vanilla")
        tab.wait_for_selector(".numbers[data-done] >> nth=1", timeout=30_000)
        assert "the same text" in tab.inner_text(".numbers >> nth=1")
        tab.route("**/answer", lambda _: None)  # never answered
        tab.fill("#prompt", "And then?")
        tab.keyboard.press("Enter")
        tab.click("#stop")
        tab.wait_for_selector("#send:enabled")
        assert tab.inner_text(".numbers >> nth=2") == "reading the prompt; stopped"
        assert tab.is_disabled("#vanilla") and tab.is_disabled("#stop")
        assert tab.input_value("#prompt") == "And then?"  # to be asked again
        tab.unroute_all()
        tab.click("#send")
        tab.wait_for_selector(".numbers[data-done] >> nth=2", timeout=30_000)
        tab.click("#anew")
        assert tab.inner_text("#talk") == ""
        assert not errors
        browser.close()


def test_the_command_says_where_the_page_is(chat_path: str) -> None:
    argv = ["--model-path", chat_path, "--method", "vanilla", "--web", "--port", "0"]
    started = subprocess.Popen(
        [sys.executable, "-m", "evaluation.demo", *argv, "--device", "cpu"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        said = started.stdout.readline()
        address = said.partition("http://")[2].partition(",")[0]
        assert "Ask something" in httpx.get(f"http://{address}", timeout=30).text
    finally:
        started.kill()
        started.wait()
