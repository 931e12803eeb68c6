"""The page that benchmarks.report writes, from results measured on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest

from benchmarks import first_token, neighbour, report, sampling, scale, sections, slowest, step_cost
from evaluation import tables
from evaluation.tabulating.columns import compare
from evaluation.tabulating.phases import phases
from evaluation.tabulating.table import to_markdown
from evaluation.traces.comparing import read_comparison
from evaluation.vocabulary import state_of_vocabulary
from model.logitspec.instruction_set import cpu_info

from ..docs.test_docs import parses
from ..evaluation.test_tables import write

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("traces")
    paths = [
        write(folder, "base", "baseline", seconds=2.0, step=1),
        write(folder, "fast", "logitspec", seconds=0.5, step=3),
    ]
    for path in paths:
        meta = json.loads(path.with_suffix(".meta.json").read_text())
        meta["environments"][0]["kernels"] = "native"
        path.with_suffix(".meta.json").write_text(json.dumps(meta))
    return paths


@pytest.fixture(scope="module")
def results(
    tiny_path: str,
    chat_path: str,
    traces: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What the commands wrote, in one environment."""
    folder = tmp_path_factory.mktemp("results")
    few = ["--rounds", "1", "--json"]
    steps = ["--model-path", tiny_path, "--device", "cpu", "--dtype", "float32", "--nodes", "4"]
    assert step_cost.main([*steps, "--context", "9", *few, str(folder / "step_cost.json")]) == 0
    grown = ["--model-path", chat_path, "--device", "cpu", "--dtype", "float32", "--nodes", "1"]
    grown += ["--contexts", "9", "20", "--new-tokens", "8", "--window", "4", "--steps", "3"]
    grown += ["--draft-contexts", "20", "40", *few, str(folder / "scale.json")]
    assert scale.main(grown) == 0
    model = ["--model-path", tiny_path, "--dtype", "float32", "--rounds", "1"]
    beside = ["--cpu-kernels", "packed", "--context", "9", "--nodes", "1", "--seconds", "0.02"]
    assert neighbour.main([*model, *beside, "--json", str(folder / "neighbour.json")]) == 0
    first = ["--methods", "vanilla,pld", "--json", str(folder / "first_token-tiny.json")]
    with pytest.MonkeyPatch.context() as patched:  # each starts a process
        clocked = {"loading": 1.0, "seconds": 0.25}
        patched.setattr(first_token, "clock", lambda *asked, **how: clocked)
        assert first_token.main([*model, *first]) == 0
    write_llama(folder)
    asked = ["--model-path", chat_path, "--model-id", "s", "--answer-dir", str(folder / "slowest")]
    asked += ["--bench-name", "quick", "--question-end", "2", "--max-new-tokens", "6"]
    asked += ["--methods", "pld", "--rounds", "2", "--warmup", "0", "--dtype", "float32"]
    assert slowest.main([*asked, "--json", str(folder / "slowest-tiny-0.0.json")]) == 0
    drawn = ["--model-path", chat_path, "--bench-name", "quick", "--question-stride", "12"]
    drawn += ["--max-new-tokens", "8", "--seeds", "2", "--only", "temperature 1", "temperature 0"]
    drawn += ["--rows", "--json", str(folder / "sampling.json")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampling, "state_of_vocabulary", partial(state_of_vocabulary, most=500))
        assert sampling.main(drawn) == 0
    methods = folder / "methods-float32.json"
    assert tables.main([*map(str, traces), "--json", str(methods)]) == 0
    here = json.loads((folder / "scale.json").read_text())["environment"]
    content = json.loads(methods.read_text())
    content["environments"] = [here | {"kernels": "native"}]
    methods.write_text(json.dumps(content))
    return folder


def write_llama(folder: Path) -> None:
    """What llama_cpp writes, of three engines on two instruction sets."""
    environment = json.loads((folder / "scale.json").read_text())["environment"]
    answers = [
        {"engine": engine, "question": 1, "tokens": 4, "output_ids": [1, 2, 3, last],
         "prompt_tokens": 30, "prompt_seconds": 1.0, "seconds": seconds, "others": 0.02}
        for engine, last, seconds in (
            ("llama.cpp none", 5, 4.0), ("llama.cpp ngram-mod", 5, 3.0), ("vanilla", 4, 2.0),
        )
    ]  # fmt: skip
    settings = {"bench_name": "quick", "threads": 2, "max_new_tokens": 4, "model_path": "a/m.gguf"}
    content = {"settings": settings, "environment": environment, "answers": answers}
    content["engines"] = [{"engine": "llama.cpp none", "version": "llama 7"}]
    for name, used in (("x", "avx512f"), ("x-avx2", "avx2, by LOGITSPEC_ISA")):
        content["environment"] = environment | {"instruction_set": used}
        (folder / f"llama_cpp-{name}.json").write_text(json.dumps(content))


def test_the_page_holds_what_was_measured(
    results: Path, traces: list[Path], tmp_path: Path
) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("What to make of it.\n")
    page = tmp_path / "docs" / "performance.md"
    assert report.main([str(results), "--output", str(page), "--notes", str(notes)]) == 0
    text = page.read_text()
    assert text.index("What to make of it.") < text.index("## A step by the number of nodes")
    steps = json.loads((results / "step_cost.json").read_text())["steps"]
    four = next(row for row in steps if row["nodes"] == 4)
    assert f"| 9 | 4 | {four['median']:.2f} [{four['low']:.2f}, {four['high']:.2f}] |" in text
    isa = sections.instructions(json.loads((results / "scale.json").read_text())["environment"])
    llama = "| m | 1 of quick | 1.0 (1.3; 30) | 1.3 (ngram-mod) | vanilla | 2.0 | 2.0 | 4.0 | 30 |"
    for used in ("avx2", "avx512f"):
        assert f"| {used} {llama} 2.00 | 1.50 | 3 |" in text
    assert "llama 7 and our methods on the same GGUF file, the same 2 threads" in text
    assert "the others use at most 2% of a core. **llama.cpp rounds activations to 8 bits" in text
    pld, again = json.loads((results / "slowest-tiny-0.0.json").read_text())["methods"]
    shown = f"{pld['overall']:.2f} | {pld['median']:.2f} | {pld['slowest']:.3f} |"
    assert f"| 0.0 | {len(pld['ratios'])} | pld | {shown} {again['slowest']:.3f} |" in text
    zero, *_, warm, drawn = json.loads((results / "sampling.json").read_text())["sampling"]
    assert warm["method"] == "calibrated, rows" and warm["equal"] == warm["answers"]
    assert len(zero["mats"]) == 1 and zero["equal"] == zero["answers"] == drawn["answers"] // 2
    assert drawn["equal"] == drawn["answers"] and len(drawn["mats"]) == 2
    by_seed = ", ".join(f"{mat:.2f}" for mat in drawn["mats"])
    assert f"| temperature 1 | calibrated@auto, rows | {drawn['mat']:.2f} | {by_seed} |" in text
    kept = json.loads((results / "neighbour.json").read_text())["steps"][0]
    assert f"| {isa} | tiny-llama | float32 | packed | 1 | {kept['quiet']:.1f} |" in text
    later = json.loads((results / "first_token-tiny.json").read_text())["methods"][1]
    assert f"] | {later['more']:+.2f} | {later['loading']:.2f} |" in text
    grown = json.loads((results / "scale.json").read_text())
    assert text.count(" 8 tokens in one generation") == len(grown["output"]) == 2
    assert f"| 20 | 1 | {grown['context'][1]['median']:.2f} [" in text
    assert "| pld | " in text
    assert f"## Beside generate(), float32, {isa}" in text
    assert "m, 4 questions of spec_bench, all turns, at most 64 new tokens, native kernels" in text
    comparison = read_comparison(traces)
    for table in (compare(comparison), phases(comparison)):
        assert to_markdown(table).strip() in text
    for name in ("step-cost", "scale"):
        assert f"(performance/{name}.png)" in text
        assert (page.parent / "performance" / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("name", "machine", "flags"),
    [
        ("performance", "amd-epyc-2-cores", ["--notes", str(DOCS / "performance-notes.md")]),
        (
            "performance-gpu",
            "nvidia-h200",
            ["--notes", str(DOCS / "performance-gpu-notes.md"), "--title", "Performance on a GPU"],
        ),
        ("performance-vllm", "amd-epyc-2-cores-vllm", ["--title", "Performance in vLLM"]),
        (
            "performance-intel",
            "intel-xeon-2-cores",
            [
                *("--notes", str(DOCS / "performance-intel-notes.md")),
                *("--title", "Performance on an Intel Xeon"),
            ],
        ),
        (
            "samples-intel",
            "intel-xeon-1-core",
            [
                *("--notes", str(DOCS / "samples-intel-notes.md")),
                *("--title", "Samples on an Intel Xeon"),
            ],
        ),
    ],
)
def test_the_page_in_the_repository_is_what_its_sources_give(
    tmp_path: Path, name: str, machine: str, flags: list[str]
) -> None:
    page = tmp_path / f"{name}.md"
    sources = ROOT / "benchmarks" / "results" / machine
    assert report.main([str(sources), "--output", str(page), *flags]) == 0
    assert page.read_text() == (DOCS / f"{name}.md").read_text()


def test_every_command_of_the_script_parses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, python = tmp_path / "said", tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >>{said}\nprintf "\\n" >>{said}\n')
    python.chmod(0o755)
    folders = {"FIGURES": str(tmp_path / "figures"), "DOCS": str(tmp_path / "docs")}
    folders |= {"SECOND": "second.gguf", "STORE": str(tmp_path / "python.store")}
    folders |= {"VLLM": "python-with-vllm", "SECOND_CHECKPOINT": "second"}
    monkeypatch.delenv("LOGITSPEC_ISA", raising=False)
    script = ["sh", str(ROOT / "benchmarks" / "pages.sh")]
    subprocess.run(script, env=os.environ | folders | {"PYTHON": str(python)}, check=True)

    def commands() -> list[str]:
        return [line for line in said.read_text().splitlines() if line.startswith("-m")]

    lines = commands()
    of_gguf, others = 2 + 2 + 2, 2 + 2  # commands of a model, and beside them
    sets = 1 + ("avx512f" in cpu_info("flags"))
    performance = sets * (2 * of_gguf + others) + 1 + 2 + 4 + 4 + 1 + 1
    performance += 1 + 2 * (2 * 2 + 2 * 2)  # for what was learnt, and samples of one prompt
    assert len(lines) == performance + (1 + 1 + 6 + 4 + 1) + (1 + 2 * 2 + 1)
    for line in lines:
        _, module, *argv = line.split("\0")[:-1]
        parses(module, argv, monkeypatch)
    subprocess.run(
        [*script, "analyses"], env=os.environ | folders | {"PYTHON": str(python)}, check=True
    )
    subprocess.run(
        [*script, "vllm"], env=os.environ | folders | {"PYTHON": str(python)}, check=True
    )
    more = commands()[len(lines) :]
    assert [line.split("\0")[1] for line in more] == [
        "evaluation.record", "evaluation.run", "evaluation.analyses",
        "evaluation.record", "evaluation.analyses",
        "evaluation.vocabulary", *["benchmarks.in_vllm"] * 4, "benchmarks.proposing",
        *["benchmarks.in_vllm"] * (sets - 1), "benchmarks.report",
    ]  # fmt: skip
    for line in more:
        _, module, *argv = line.split("\0")[:-1]
        parses(module, argv, monkeypatch)
    lines += more
    without = os.environ | folders | {"PYTHON": str(python), "SECOND": "", "VLLM": ""}
    done = subprocess.run(
        [*script, "performance"], env=without, check=True, capture_output=True, text=True
    )
    assert done.stderr == "pages.sh: no second model is measured; SECOND names its GGUF file\n"
    last = commands()[len(lines) :]
    assert last
    assert not any("second" in line or "vllm" in line for line in last)
    refused = subprocess.run([*script, "second"], env=without, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("pages.sh: no second model to ask; give its GGUF file")
    refused = subprocess.run([*script, "vllm"], env=without, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("pages.sh: no vLLM to measure in; give the python")
    refused = subprocess.run([*script, "all"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("pages.sh: unknown page all; give performance, results")


NO_MODEL = "benchmarks.agreement", "benchmarks.report"


def test_every_command_of_the_script_for_a_gpu_parses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, python = tmp_path / "said", tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nprintf "%s\\0" "$@" >>{said}\nprintf "\\n" >>{said}\n'
        'for last; do :; done\ncase "$last" in *.json.part) : >"$last" ;; esac\n'
    )
    python.chmod(0o755)
    script = ["sh", str(ROOT / "benchmarks" / "gpu.sh")]
    own = {"FIGURES": str(tmp_path / "figures"), "PYTHON": str(python)}
    own |= {"SECOND": "second.gguf", "VLLM": "python-with-vllm"}
    subprocess.run(script, env=os.environ | own, check=True)
    lines = said.read_text().splitlines()
    answers, of_all = 1 + 1 + 3 * 2 + 1, 2 * 2 * 2
    assert len(lines) == 2 + answers + (1 + 2) + (1 + of_all) + 2 + 1
    for line in lines:
        _, module, *argv = line.split("\0")[:-1]
        parses(module, argv, monkeypatch)
        on_gpu = module.startswith("benchmarks.") and module not in NO_MODEL
        if module == "evaluation.run":
            on_gpu = "gpu-cpu" not in argv
        assert ("cuda" in argv) is on_gpu
    refused = subprocess.run([*script, "half"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("gpu.sh: unknown part half; give steps, answers")


UNDATED = (
    '{"kind": "evaluation.tables 1", "settings": {"dtype": "x", "model": "m", "bench_name": "b",'
    ' "max_new_tokens": 1}, "first_turns": false, "questions": 1, "environments": [], "tables": {}}'
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "holds none of agreement*.json, llama_cpp*.json, methods-*.json, slowest*.json"),
        ("{", "is not all that the benchmark writes; measure it again, whole"),
        ("[3]", "is not all that the benchmark writes; measure it again, whole"),
        ('{"settings": {}, "environment": {}}', "is not all that the benchmark writes"),
        ('{"kind": "a trace"}', "is not all that the benchmark writes"),
        (UNDATED, "does not say what it was measured with"),
    ],
)
def test_other_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "methods-x.json").write_text(content)
    assert report.main([str(tmp_path), "--output", str(tmp_path / "out.md")]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    assert report.main([str(tmp_path / "no"), "--output", str(tmp_path / "out.md")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_results_of_several_machines_are_refused(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("methods-float32.json", "scale.json"):
        content = json.loads((results / name).read_text())
        if name == "scale.json":
            content["environment"]["threads"] += 1
        (tmp_path / name).write_text(json.dumps(content))
    assert report.main([str(tmp_path), "--output", str(tmp_path / "out.md")]) == 2
    assert "holds results of several machines" in capsys.readouterr().err


def test_builds_of_a_kernel_are_one_machine() -> None:
    known = "Linux-6.8.0-x86_64-with-glibc2.39"
    assert report.release("Linux-6.8.0-45-generic-x86_64-with-glibc2.39") == known
    assert report.release("Linux-6.8.0-x86_64-with-glibc2.39") == known
    assert report.release("Linux-6.9.1-45-x86_64-with-glibc2.39") != known
    assert report.release("macOS-15.1-arm64-arm-64bit") == "macOS-15.1-arm64-arm-64bit"
