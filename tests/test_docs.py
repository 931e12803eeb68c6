"""README and docs: links lead somewhere, every command shown parses, the quick ones run."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evaluation import run as run_module
from evaluation.command import inference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("evaluation", "benchmarks", "data")
    for path in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            assert target.startswith("https://"), target
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{target} in {name(page)}"
        assert not anchor or anchor in anchors(place), f"{target} in {name(page)}"


def commands() -> list[Any]:
    """Every command in a block of shell, with the page it is shown on."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and ".py:" not in line:  # the worked example has a test of its own
                    found.append(pytest.param(line, id=f"{name(page)}: {' '.join(words)[:60]}"))
    return found


def expanded(line: str) -> list[str]:
    """A command's words as the shell hands them on."""
    script = f"set -- {line}\nprintf '%s\\0' \"$@\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = expanded(line.replace("...", "").replace("FILE.md", "x.md").replace("DIR", "."))
    settings = [words.pop(0) for word in list(words) if re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[0] == "sh":
        script = (ROOT / words[1]).read_text()
        for setting in settings:
            assert f"${{{setting.partition('=')[0]}" in script, f"{words[1]} knows no {setting}"
        assert len(words) == 2 or words[2] in script
        return
    assert not settings
    if words[0] in ("pip", "git", "cd", "ray", "curl"):
        return
    assert words[0] == "python", words
    if words[1] == "-m":
        module, argv = words[2], words[3:]
    else:
        module, argv = words[1].removesuffix(".py").replace("/", "."), words[2:]
    main = importlib.import_module(module)
    parses(main, argv, monkeypatch)


def parses(module: ModuleType, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command's main() but for its work."""
    if module is run_module:
        monkeypatch.setattr(module, "run_several", lambda args: None)
    else:
        for place in (module, inference):
            monkeypatch.setattr(place, "run_command", lambda *_: 0, raising=False)
    try:
        status = module.main(argv)
    except SystemExit as exit_:
        status = exit_.code
    assert status == 0


def test_a_flag_that_is_not_there_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "python -m evaluation.run --methods vanilla --model-path x --model-id y --no-flag 3"
    with pytest.raises(AssertionError):
        test_commands_parse(line, monkeypatch)
    with pytest.raises(AssertionError, match="knows no NOTHING"):
        test_commands_parse("NOTHING=1 sh eval.sh", monkeypatch)


@pytest.mark.parametrize("module", MODULES)
def test_help(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        importlib.import_module(module).main(["--help"])
    assert done.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_every_flag_of_the_table_exists_and_every_common_flag_is_in_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = (ROOT / "README.md").read_text().partition("## Flags")[2].partition("\n## ")[0]
    rows = "\n".join(line for line in table.splitlines() if line.startswith("|"))
    shown = {flag.replace("_", "-") for flag in re.findall(r"`(--[\w-]+)`", rows)}
    helps = []
    for script in (
        "evaluation.run",
        "evaluation.inference_logitspec",
        "evaluation.inference_baseline",
    ):
        with pytest.raises(SystemExit):
            importlib.import_module(script).main(["--help"])
        text = capsys.readouterr().out
        helps.append(set(re.findall(r"(?<![\w-])(--[a-z][\w-]+)", text.replace("_", "-"))))
    known = set.union(*helps)
    assert not shown - known, "the README shows flags that are not there"
    assert not (helps[1] - {"--help"}) - shown, "the README lacks flags of the inference scripts"


def test_the_readmes_python_runs(
    default_model_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {"input_ids": [5, 6, 7]}
    quick = blocks[0].replace("import logitspec", "import model.logitspec as logitspec")
    quick = quick.replace("calibrated", "logitspec")  # which takes a minute with a new model
    exec(compile(quick, "README.md", "exec"), names)
    assert names["result"].tokens and names["result"].accept_lengths
    longer = blocks[1].replace("from logitspec", "from model.logitspec")
    exec(compile(longer, "README.md", "exec"), names)
    result = names["result"]
    said = names["tokenizer"].decode(result.tokens, skip_special_tokens=True)
    figure = f"{result.mean_accepted_tokens:.2f} tokens per forward"
    assert capsys.readouterr().out == f"{said}\n{figure}\n"
