"""One page from what the benchmarks wrote with --json: python -m benchmarks.report --help."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.command.exits import run_command
from evaluation.command.files import make_folder, write_text
from evaluation.command.parser import Parser
from evaluation.pictures.style import require_matplotlib
from evaluation.tabulating.origin import machine, read_tables
from evaluation.tabulating.table import to_markdown
from model.logitspec.errors import InputError

from . import in_vllm, proposing, scale, step_cost
from .measure import fill, grouped
from .sections import (
    Content,
    agreement_section,
    contexts_section,
    first_token_section,
    instructions,
    llama_section,
    markdown_table,
    named,
    neighbour_section,
    sampling_section,
    slowest_section,
    warm_section,
)


def step_section(contents: Sequence[Content], folder: Path) -> str:
    """Of step_cost's results; the picture is the first one's."""
    step_cost.draw(contents[0]["steps"], folder / "step-cost.png")
    text = (
        "## A step by the number of nodes\n\n"
        "`python -m benchmarks.step_cost`: milliseconds, medians of "
        f"{contents[0]['settings']['rounds']} rounds in which the kernels take turns. The limits "
        "are what reading all weights as the checkpoint has them and the cache once, and "
        "multiplying, would take at the rates measured in the same minute; the last column is the "
        "distance of the first kernels to the larger of the two.\n\n"
        f"![step time over nodes]({folder.name}/step-cost.png)\n"
    )
    for content in contents:
        found = named(content)
        prompts = grouped(content.get("prompts", ()), "{dtype}")
        for dtype, rows in grouped(content["steps"], "{dtype}").items():
            kernels = list(grouped(rows, "{kernels}"))
            same = grouped(rows, "{context} {nodes}").values()
            shown = markdown_table(step_cost.columns(kernels), [*map(step_cost.compared, same)])
            made = [found["model"], found["isa"], dtype]
            text += f"\n{', '.join(word for word in made if word != '-')}:\n\n{shown}"
            if dtype in prompts:
                lengths = grouped(prompts[dtype], "{tokens}").values()
                columns = step_cost.columns(kernels, prompts=True)
                text += "\nReading a prompt of so many tokens:\n\n"
                text += markdown_table(columns, [*map(step_cost.compared, lengths)])
    return text


def scale_section(contents: Sequence[Content], folder: Path) -> str:
    """Of scale's results."""
    (content,) = contents
    found = [name for name in scale.PANELS if content.get(name)]
    scale.draw(content, found, folder / "scale.png")
    made = content["load"][0]
    columns = {
        {"attention": "grown since the shortest"}.get(heading, heading): cell
        for heading, cell in scale.CONTEXT_COLUMNS.items()
    }
    text = (
        "## As context and output grow\n\n"
        f"`python -m benchmarks.scale`, {made['dtype'].removeprefix('torch.')}, "
        f"{made['kernels']} kernels.\n\n![scale]({folder.name}/scale.png)\n\n"
        + markdown_table(columns, content["context"])
    )
    for row in content["output"]:
        said = "{method}, {new_tokens} tokens in one generation, {steps} steps"
        text += f"\n{fill(said, row)}; {scale.summary(row)}.\n\n"
        text += markdown_table(scale.WINDOW_COLUMNS, row["windows"])
    text += (
        "\nDrafting, `draft` and `observe` together, microseconds per step by the tokens that came "
        "before:\n\n"
    )
    shown: dict[str, tuple[int, str]] = {"drafter": (0, "{drafter}")}
    for context in sorted({row["context"] for row in content["drafting"]}):
        shown[f"{context}"] = (0, f"{{at {context}:.1f}}")
    shown["longest to shortest"] = (0, "{to_shortest:.2f}")
    rows = [
        {**own[-1], **{f"at {row['context']}": row["median"] for row in own}}
        for own in grouped(content["drafting"], "{drafter}").values()
    ]
    return text + markdown_table(shown, rows)


def methods_section(contents: Sequence[Content], _: Path) -> str:
    """Of what evaluation.tables --json wrote."""
    return "\n".join(map(methods_table, contents))


def methods_table(content: Content) -> str:
    """Of one of these files."""
    tables = read_tables(content)
    settings = content["settings"]
    kernels = sorted({environment["kernels"] for environment in content["environments"]})
    used = " and ".join(sorted({instructions(found) for found in content["environments"]} - {"-"}))
    turns = "first turns" if content["first_turns"] else "all turns"
    beside_theirs = "baseline" in content.get("methods", "baseline")
    whose = "generate()" if beside_theirs else "the one-node loop"
    return (
        f"## Beside {whose}, {settings['dtype']}{f', {used}' if used else ''}\n\n"
        "`python -m evaluation.run` and `python -m evaluation.tables --json`: "
        f"{settings['model']}, {content['questions']} questions of {settings['bench_name']}, "
        f"{turns}, at most {settings['max_new_tokens']} new tokens, "
        f"{' and '.join(kernels)} kernels; the methods take turns question by question.\n\n"
        + "\n".join(map(to_markdown, tables.values()))
    )


def samples_section(contents: Sequence[Content], _: Path) -> str:
    """Of what evaluation.tables --json wrote of runs with several answers to each question."""
    parts = []
    for content in contents:
        settings = content["settings"]
        parts.append(
            f"### {settings['bench_name']}, temperature {settings['temperature']}, "
            f"{content['questions']} questions\n\n"
            f"{settings['model']}, {settings['dtype']}, at most {settings['max_new_tokens']} new "
            "tokens.\n\n" + to_markdown(read_tables(content)["samples"])
        )
    return (
        "## Several samples of one prompt\n\n"
        "`python -m evaluation.run --num-choices` and `python -m evaluation.tables --json`; the "
        "methods take turns question by question.\n\n" + "\n".join(parts)
    )


def vllm_section(contents: Sequence[Content], folder: Path) -> str:
    """Of in_vllm's results, with a picture of each."""
    text = (
        "## In vLLM\n\n"
        "`python -m benchmarks.in_vllm` ([vllm.md](vllm.md)): servers with one model each, asked "
        "over HTTP, so many requests at a time. They take turns, and on a CPU the others stand "
        "still. No prompt is asked twice of a server. Greedy. `ngram` is vLLM's as it comes, "
        "`ngram tuned` looks for n-grams of 2 to 4 tokens; `suffix` is arctic-inference's, as it "
        "comes; `calibrated warm` begins with rows of the whole vocabulary. Tokens a step are a "
        "request's, by vLLM's counts, which include drafts behind the end of an answer. An answer "
        "is equal if it is that of vLLM without speculation, token for token.\n"
    )
    for content in contents:
        settings, (engine,) = content["settings"], content["engine"]
        known = named(content)
        name = f"{content['file']}.png"
        in_vllm.draw(content["cells"], folder / name)
        text += (
            f"\nvLLM {engine['vllm']}, {known['model']}, {settings['dtype']}, {known['isa']}: "
            f"{' and '.join(settings['benches'])}, prompts of at most "
            f"{settings['most_prompt_tokens']} tokens, at most {settings['max_new_tokens']} new "
            f"ones, medians of {settings['rounds']} rounds.\n\n"
            f"![tokens/s in vLLM]({folder.name}/{name})\n\n"
            + markdown_table(in_vllm.SUMMARY, in_vllm.summary(content["cells"]))
        )
    return text


def proposing_section(contents: Sequence[Content], _: Path) -> str:
    """Of proposing's results."""
    rows = [row for content in contents for row in content["proposing"]]
    settings = contents[0]["settings"]
    return (
        "## What proposing costs in vLLM\n\n"
        "`python -m benchmarks.proposing`: the proposers without vLLM, given a batch's arrays and "
        f"the logits of every verified position, over {settings['vocabulary']:,} tokens; at most "
        f"{settings['drafts']} drafts a request, all of them verified.\n\n"
        + markdown_table(proposing.COLUMNS, rows)
    )


SECTIONS: dict[str, Callable[[Sequence[Content], Path], str]] = {
    "agreement*.json": lambda contents, _: agreement_section(contents),
    "llama_cpp*.json": lambda contents, _: llama_section(contents),
    "methods-*.json": methods_section,
    "slowest*.json": lambda contents, _: slowest_section(contents),
    "samples*.json": samples_section,
    "sampling*.json": lambda contents, _: sampling_section(contents),
    "contexts*.json": lambda contents, _: contexts_section(contents),
    "warm*.json": lambda contents, _: warm_section(contents),
    "first_token*.json": lambda contents, _: first_token_section(contents),
    "vllm*.json": vllm_section,
    "proposing*.json": proposing_section,
    "step_cost*.json": step_section,
    "neighbour*.json": lambda contents, _: neighbour_section(contents),
    "scale.json": scale_section,
}


def release(platform: str) -> str:
    """A platform's name without the build of its kernel: Linux-6.8.0-x86_64-with-glibc2.39 of
    Linux-6.8.0-45-generic-x86_64-with-glibc2.39."""
    return re.sub(r"^(Linux-[\d.]+)-.*-(\w+-with-)", r"\1-\2", platform)


def sections(source: Path, pictures: Path) -> tuple[list[str], str]:
    """The page's parts from a folder's files, and what the numbers were measured with.

    The parts' pictures are written into a folder.

    Raises:
        InputError: there are no files, one is of another make or does not say what it was measured
            with, or they were measured on different machines.
    """
    parts: list[str] = []
    machines: dict[str, set[str]] = {}
    commits: set[str] = set()
    for name, make in SECTIONS.items():
        paths = sorted(source.glob(name), key=lambda path: path.stem)
        if not paths:
            continue
        try:
            contents = [
                {**json.loads(path.read_text(encoding="utf-8")), "file": path.stem}
                for path in paths
            ]
            parts.append(make(contents, pictures))
        except (OSError, KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
            raise InputError(
                f"{' or '.join(map(str, paths))} is not all that the benchmark writes; measure it "
                "again, whole"
            ) from error
        for path, content in zip(paths, contents, strict=True):
            try:
                for found in content.get("environments") or [content["environment"]]:
                    kind = {"instruction_set": None, "platform": release(found["platform"])}
                    machines.setdefault(machine({**found, **kind}), set()).add(instructions(found))
                    commits.add(str(found["commit"])[:12])
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path} does not say what it was measured with") from error
    if not parts:
        raise InputError(f"{source} holds none of {', '.join(SECTIONS)}")
    if len(machines) > 1:
        raise InputError(f"{source} holds results of several machines: {'; '.join(machines)}")
    ((made, used),) = machines.items()
    sets = ", ".join(sorted(used - {"-"}))
    return parts, f"{made}; {f'instruction sets: {sets}; ' if sets else ''}commit " + (
        f"{', '.join(sorted(commits))}."
    )


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    require_matplotlib()
    if not args.results.is_dir():
        raise InputError(f"no folder {args.results}; give one with the benchmarks' JSON files")
    pictures = args.output.with_suffix("")
    make_folder(pictures)
    parts, made = sections(args.results, pictures)
    if args.notes:
        try:
            parts.insert(0, args.notes.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{args.notes}: {error.strerror}; give another file") from error
    text = f"# {args.title}\n\nWritten by `python -m benchmarks.report`. {made}\n"
    text += "".join(f"\n{part.strip()}\n" for part in parts)
    write_text(args.output, text)
    print(f"{args.output}, pictures in {pictures}")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.report", "A page from the benchmarks' JSON files.")
    add = parser.add_argument
    known = f"with any of {', '.join(SECTIONS)}, as --json wrote them"
    add("results", type=Path, metavar="FOLDER", help=known)
    add("--output", type=Path, required=True, metavar="FILE.md", help="pictures go beside it")
    add("--notes", type=Path, metavar="FILE", help="Markdown to put before the first section")
    add("--title", default="Performance", help="of the page")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
