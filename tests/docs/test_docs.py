"""README and docs: links, code references and flags exist, commands parse, examples run."""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from docs import make_flags

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = ("docs/flags.md",)
MODULES = make_flags.command_modules()
# Programs that are not this repository's
OTHER_PROGRAMS = (".", "pip", "git", "cd", "ray", "curl", "hf", "vllm")
OTHER_FLAGS = {"--head", "--address", "--setup"}  # of `ray start` and of eval.sh


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def spans(page: Path) -> list[str]:
    """The code spans of a page's prose."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            assert target.startswith("https://"), target
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{target} in {name(page)}"
        assert not anchor or anchor in anchors(place), f"{target} in {name(page)}"


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


@cache
def defined_names(file: Path) -> set[str]:
    """Functions, classes and methods (CLASS.METHOD) of a Python file."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_that_a_page_names_exists(page: Path) -> None:
    for span in spans(page):
        reference = re.fullmatch(r"([\w./-]+\.py): ([\w.]+)", span)
        if reference:
            file = ROOT / reference[1]
            assert file.is_file(), f"{span} in {name(page)}: no such file"
            assert reference[2] in defined_names(file), f"{span} in {name(page)}: no such name"
        elif re.match(r"(model|evaluation|benchmarks|docs|tests)/[\w./-]*$", span):
            assert (ROOT / span).exists(), f"{span} in {name(page)}"


def test_the_folders_of_the_map_exist() -> None:
    block = (ROOT / "CONTRIBUTING.md").read_text().split("```text\n")[1].split("```")[0]
    folders = [line.split()[0] for line in block.splitlines() if not line.startswith(" ")]
    assert len(folders) >= 9
    made_later = {"checkpoints/"}
    assert not [f for f in folders if f not in made_later and not (ROOT / f).is_dir()]
    packages = {
        path.parent for top in ("model", "evaluation") for path in (ROOT / top).rglob("*.py")
    }
    there = {f"{package.relative_to(ROOT)}/" for package in packages} - {"model/"}
    assert not there - set(folders), "CONTRIBUTING.md's map lacks folders"


def test_tests_that_a_page_names_exist() -> None:
    known = set().union(*(defined_names(file) for file in (ROOT / "tests").glob("**/test_*.py")))
    named = [span for page in PAGES for span in spans(page) if span.startswith("test_")]
    assert len(named) >= 10
    for span in named:
        assert any(n.startswith(span[:-1]) if span[-1] == "…" else n == span for n in known), span


@pytest.mark.parametrize("page", [p for p in PAGES if name(p) not in GENERATED], ids=name)
def test_flags_that_a_page_names_exist(page: Path) -> None:
    known = {flag for module in MODULES for flag in flags_of(module)} | OTHER_FLAGS
    for span in spans(page):
        for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", span):
            assert flag.replace("_", "-") in known, f"{flag} in {name(page)}"


@cache
def flags_of(module: str) -> set[str]:
    return {
        flag for action in make_flags.parser_of(module)._actions for flag in action.option_strings
    }


def commands() -> Iterator[Any]:
    """Every command in a block of shell, with the page it is shown on."""
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and ".py:" not in line:  # the worked example has a test of its own
                    yield pytest.param(line, id=f"{name(page)}: {' '.join(words)[:60]}")


def inline_commands() -> Iterator[Any]:
    """Every command in a line of prose: some are whole, some show a few flags only."""
    for page in PAGES:
        if name(page) in GENERATED:
            continue
        for span in spans(page):
            if re.match(r"([A-Z_]+=\S+ )*(sh |python |(evaluation|benchmarks)\.\w+( |$))", span):
                yield pytest.param(span, id=f"{name(page)}: {span[:60]}")


def expanded(line: str) -> list[str]:
    """A command's words as the shell hands them on."""
    script = f"set -- {line}\nprintf '%s\\0' \"$@\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def without_settings(words: list[str]) -> tuple[list[str], list[str]]:
    """The variables set before a command, and the command."""
    settings = [word for word in words if re.fullmatch(r"[A-Z_]+=.*", word)]
    return [setting.partition("=")[0] for setting in settings], words[len(settings) :]


def check_script(words: list[str], settings: list[str]) -> None:
    """A script takes these arguments and variables."""
    script = (ROOT / words[1]).read_text()
    for setting in settings:
        known = f"${{{setting}" in script or setting == "LOGITSPEC_ISA"
        assert known, f"{words[1]} knows no {setting}"
    assert len(words) == 2 or words[2] in script


def module_of(words: list[str]) -> tuple[str, list[str]]:
    """The module that a command runs, and its arguments."""
    if words[0] != "python":
        return words[0], words[1:]
    if words[1] == "-m":
        return words[2], words[3:]
    return words[1].removesuffix(".py").replace("/", "."), words[2:]


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = expanded(line.replace("...", "").replace("FILE.md", "x.md").replace("DIR", "."))
    settings, words = without_settings(words)
    if words[0] == "sh":
        check_script(words, settings)
        return
    assert not settings
    if words[0] in OTHER_PROGRAMS:
        return
    assert words[0] == "python", words
    parses(*module_of(words), monkeypatch)


class Parsed(BaseException):
    """The flags of a command were taken."""


def parses(module: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command's main() until its flags are parsed."""
    parse = argparse.ArgumentParser.parse_args

    def stop_after(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after)
    try:
        status = importlib.import_module(module).main(argv)
    except Parsed:
        status = 0
    except SystemExit as exit_:
        status = exit_.code
    assert status == 0


@pytest.mark.parametrize("line", inline_commands())
def test_commands_in_prose_exist_with_their_flags(line: str) -> None:
    settings, words = without_settings(expanded(line))
    if words[0] == "sh":
        check_script(words, settings)
        return
    module, argv = module_of([word.replace("inference_METHOD", "inference_pld") for word in words])
    if module == "docs.make_flags":
        assert not argv
        return
    assert module in MODULES, line
    given = {word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}
    assert not given - flags_of(module), line


def test_a_flag_that_is_not_there_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "python -m evaluation.run --methods vanilla --model-path x --model-id y --no-flag 3"
    with pytest.raises(AssertionError):
        test_commands_parse(line, monkeypatch)
    with pytest.raises(AssertionError, match="--no-flag"):
        test_commands_in_prose_exist_with_their_flags("python -m evaluation.run --no-flag 3")
    with pytest.raises(AssertionError, match="knows no NOTHING"):
        test_commands_parse("NOTHING=1 sh eval.sh", monkeypatch)


@pytest.mark.parametrize("module", MODULES)
def test_help(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        importlib.import_module(module).main(["--help"])
    assert done.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_the_page_of_flags_is_what_the_parsers_say() -> None:
    assert make_flags.PAGE.read_text() == make_flags.page(), "run python -m docs.make_flags"


def test_every_flag_of_the_table_exists_and_every_common_flag_is_in_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = "\n".join(
        line for line in make_flags.PAGE.read_text().splitlines() if line.startswith("| `")
    )
    shown = {flag.replace("_", "-") for flag in re.findall(r"`(--[\w-]+)", rows)}
    helps = []
    for script in (
        "evaluation.run",
        "evaluation.inference_logitspec",
        "evaluation.inference_baseline",
        *MODULES,
    ):
        with pytest.raises(SystemExit):
            importlib.import_module(script).main(["--help"])
        text = capsys.readouterr().out
        helps.append(set(re.findall(r"(?<![\w-])(--[a-z][\w-]+)", text.replace("_", "-"))))
    known = set.union(*helps)
    assert not shown - known, "the page shows flags that are not there"
    assert not (helps[1] - {"--help"}) - shown, "the page lacks flags of the inference scripts"


def test_the_page_of_analyses_has_the_text_of_its_sections() -> None:
    page = (ROOT / "docs" / "analyses.md").read_text()
    texts = []
    for file in sorted((ROOT / "evaluation" / "analysing").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Section":
                texts += [a.value for a in node.args[1:3] if isinstance(a, ast.Constant)]
    assert len(texts) >= 10
    assert not [text for text in texts if text not in page]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("analyses*.md")), ids=name)
def test_the_pages_of_analyses_show_their_tables(page: Path) -> None:
    for file in page.with_suffix("").glob("*.csv"):
        assert f"({page.stem}/{file.name})" in page.read_text()
        with file.open(encoding="utf-8", newline="") as lines:
            rows = [*csv.reader(lines)]
        rows.insert(1, ["---", *["---:"] * (len(rows[0]) - 1)])
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        assert f"{table}\n" in page.read_text(), file.name


def test_the_page_of_the_api_names_every_origin() -> None:
    from model.logitspec.origins import ORIGINS

    page = (ROOT / "docs" / "api.md").read_text()
    assert not [origin for origin in ORIGINS if f'"{origin}"' not in page]


def test_the_readmes_python_runs(
    default_model_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    block = block.replace("import logitspec", "import model.logitspec as logitspec")
    block = block.replace("calibrated", "logitspec")  # which takes a minute with a new model
    exec(compile(block, "README.md", "exec"), names)
    result = names["result"]
    assert result.tokens and result.accept_lengths
    said = names["tokenizer"].decode(result.tokens)
    figure = f"{result.mean_accepted_tokens:.2f} tokens per forward"
    assert capsys.readouterr().out == f"{said}\n{figure}\n"
