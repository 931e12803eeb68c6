"""The parts of docs/performance.md that put several files into one table: report.py asks for them.

A file is measured with one model on one instruction set; what it was shows in its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from . import agreement, contexts, first_token, neighbour, warm
from .llama_summary import PLAIN, THEIRS, summary
from .measure import Columns, Figures, cells

Content = dict[str, Any]
INSTRUCTIONS = {"instructions": (0, "{isa}"), "model": (0, "{model}")}
SPEEDS: Columns = {
    **INSTRUCTIONS,
    "questions": (0, "{questions} of {bench}"),
    "llama.cpp": (0, "{plain}"),
    "its best": (0, "{best}"),
    "method": (0, "{engine}"),
    "tokens/s": (0, "{speed:.1f}"),
    "median of questions": (0, "{median:.1f}"),
    "decoding": (0, "{decoding:.1f}"),
    "prompt": (0, "{reading:.0f}"),
    "× llama.cpp": (0, "{over_plain:.2f}"),
    "× its best": (0, "{over_best:.2f}"),
    "same as llama.cpp until": (0, "{agreed:.0f}"),
}
SLOWEST: Columns = {
    **INSTRUCTIONS,
    "temperature": (0, "{temperature}"),
    "questions": (0, "{questions}"),
    "method": (0, "{method}"),
    "over one-node loop": (0, "{overall:.2f}"),
    "median of questions": (0, "{median:.2f}"),
    "slowest 5 %": (0, "{slowest:.3f}"),
    "the loop over itself, slowest 5 %": (0, "{noise:.3f}"),
}

SAMPLES: Columns = {
    **INSTRUCTIONS,
    "sampling": (0, "{sampling}"),
    "method": (0, "{method}"),
    "MAT": (0, "{mat:.2f}"),
    "by seed": (0, "{by_seed}"),
    "over one-node loop": (0, "{speed:.2f}"),
    "equal answers": (0, "{equal} of {answers}"),
}


def markdown_table(columns: Columns, rows: Sequence[Figures]) -> str:
    """The first column to the left, the others to the right."""
    texts = [list(columns), *(cells(columns, row) for row in rows)]
    lines = ["| " + " | ".join(line) + " |" for line in texts]
    rule = "|---|" + "---:|" * (len(columns) - 1)
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def instructions(environment: Figures) -> str:
    """The instruction set of an environment, without how it was forced."""
    return str(environment.get("instruction_set") or "-").partition(",")[0]


def named(content: Content) -> Figures:
    """The columns INSTRUCTIONS of a benchmark's file."""
    settings = content["settings"]
    model = PurePath(settings["model_path"]).name.removesuffix(".gguf")
    if settings.get("random_weights"):
        model = f"{settings['random_weights']} (random weights)"
    return {"isa": instructions(content["environment"]), "model": model}


def llama_section(contents: Sequence[Content]) -> str:
    """Of llama_cpp's results: our methods, each beside llama.cpp of the same run."""
    rows = []
    for content in contents:
        engines = {row["engine"]: row for row in summary(content["answers"])}
        theirs = {name: row for name, row in engines.items() if name.startswith(THEIRS)}
        best = max(theirs.values(), key=lambda row: float(row["speed"]))
        plain = theirs.get(PLAIN)
        shown = {
            "bench": content["settings"]["bench_name"],
            "plain": plain and speeds(plain),
            "best": f"{best['speed']:.1f} ({best['engine'].removeprefix(THEIRS)})",
        }
        for name, row in engines.items():
            if name not in theirs:
                agreed = best["agreed"]  # of its answers and our first method's
                rows.append({**named(content), **shown, **row, "agreed": agreed})
    settings = contents[0]["settings"]
    version = next(row["version"] for row in contents[0]["engines"] if "version" in row)
    others = max(row["others"] for content in contents for row in content["answers"])
    return (
        "## Beside llama.cpp\n\n"
        f"`python -m benchmarks.llama_cpp`: {version} and our methods on the same GGUF file, the "
        f"same {settings['threads']} threads, greedy, at most {settings['max_new_tokens']} tokens, "
        "first turns, with the same prompt ids; each prompt is read anew. Tokens per second of all "
        "questions, the prompt included; of llama.cpp in brackets decoding and prompt alone. Its "
        "best is the fastest of no speculation, ngram-simple, ngram-mod and ngram-cache, with its "
        "own settings of each. The engines take turns question by question, and while one answers "
        f"the others use at most {others:.0%} of a core. **llama.cpp rounds activations to 8 bits "
        "and ours does not**, so answers part: the last column is the median number of tokens "
        f"before the first that differs.\n\n{markdown_table(SPEEDS, rows)}"
    )


def speeds(row: Figures) -> str:
    return f"{row['speed']:.1f} ({row['decoding']:.1f}; {row['reading']:.0f})"


def slowest_section(contents: Sequence[Content]) -> str:
    """Of slowest's results."""
    rows = []
    for content in contents:
        *methods, again = content["methods"]
        shown = {
            **named(content),
            "temperature": content["settings"]["temperature"],
            "questions": len(again["ratios"]),
            "noise": again["slowest"],
        }
        rows += [{**shown, **row} for row in methods]
    settings = contents[0]["settings"]
    return (
        "## Question by question\n\n"
        "`python -m benchmarks.slowest`: tokens/s over the one-node loop's, by the questions of "
        f"{settings['bench_name']}, at most {settings['max_new_tokens']} tokens a turn. A "
        "question's ratio is the median of some rounds, in which the methods take turns. One "
        "question in twenty is below the column before the last. The last column is the same of "
        "the loop beside itself: what the machine's noise makes of no difference.\n\n"
        + markdown_table(SLOWEST, rows)
    )


def sampling_section(contents: Sequence[Content]) -> str:
    """Of sampling's results."""
    rows = [
        {**named(content), **row, "by_seed": ", ".join(f"{mat:.2f}" for mat in row["mats"])}
        for content in contents
        for row in content["sampling"]
    ]
    asked = [
        f"{''.join(f'with `--{flag}` ' for flag in ('others', 'rows') if settings.get(flag))}"
        f"every {settings['question_stride']}th question of {settings['bench_name']}, "
        f"at most {settings['max_new_tokens']} tokens a turn, a sample for each of "
        f"{settings['seeds']} seeds"
        for settings in (content["settings"] for content in contents)
    ]
    return (
        "## Samples whose noise is known\n\n"
        f"`python -m benchmarks.sampling`: {'; '.join(dict.fromkeys(asked))}. The methods take "
        "turns. `blind` is the method that does not look at the noise, `foresight` the option of "
        "others that do; `rows` begins with rows of the whole vocabulary. Speeds are medians over "
        "the seeds of tokens/s over those of the one-node loop. An answer is equal if it is the "
        "one-node loop's with the same seed.\n\n" + markdown_table(SAMPLES, rows)
    )


def contexts_section(contents: Sequence[Content]) -> str:
    """Of contexts' results."""
    rows = [{**named(content), **row} for content in contents for row in content["contexts"]]
    reading = [
        f"{row['prefill_seconds']:.0f} s for {row['prompt_tokens']:.0f} tokens ({row['model']}; "
        f"the process held {row['grown_mib']:.0f} MiB more after the last prompt)"
        for row in rows
        if row["method"] == contexts.BASE
    ]
    settings = contents[0]["settings"]
    return (
        "## Long contexts\n\n"
        "`python -m benchmarks.contexts`: reports that are to be summarized, at most "
        f"{settings['max_new_tokens']} tokens an answer. A prompt is read once, and the methods "
        f"decode behind it in turns. Reading takes {', '.join(reading)}. Speeds are medians over "
        "the prompts of the one-node loop's seconds of decoding over the method's. Of the "
        "milliseconds of a step `draft` holds what the drafter does with the prompt, and `commit` "
        "what it learns from a step, beside the cache's moves.\n\n"
        + markdown_table({**INSTRUCTIONS, **contexts.COLUMNS}, rows)
    )


def warm_section(contents: Sequence[Content]) -> str:
    """Of warm's results."""
    rows = [{**named(content), **row} for content in contents for row in content["warm"]]
    settings = contents[0]["settings"]
    return (
        "## Beginning with what was learnt before\n\n"
        f"`python -m benchmarks.warm`: of each benchmark {settings['questions']} questions are "
        f"asked, at most {settings['max_new_tokens']} tokens a turn, after as many others of it, "
        "or of another benchmark, have taught `calibrated`; its MAT, greedy, "
        f"{settings['draft_tree_capacity']} nodes. `cold` begins with its fitted prior alone.\n\n"
        + markdown_table({**INSTRUCTIONS, **warm.COLUMNS}, rows)
    )


def first_token_section(contents: Sequence[Content]) -> str:
    """Of first_token's results."""
    rows = [{**named(content), **row} for content in contents for row in content["methods"]]
    return (
        "## To the first token\n\n"
        "`python -m benchmarks.first_token`: seconds from the loaded model to the first token, in "
        "a new process with an empty cache folder; compilation is apart. Median [quartiles] of "
        f"{contents[0]['settings']['rounds']}.\n\n"
        + markdown_table({**INSTRUCTIONS, **first_token.COLUMNS}, rows)
    )


def neighbour_section(contents: Sequence[Content]) -> str:
    """Of neighbour's results."""
    rows = [
        {**named(content), **row, "dtype": row["dtype"]}
        for content in contents
        for row in content["steps"]
    ]
    columns = {**INSTRUCTIONS, "dtype": (0, "{dtype}"), **neighbour.COLUMNS}
    return (
        "## Beside a busy neighbour\n\n"
        "`python -m benchmarks.neighbour`: steps per second on a quiet machine and beside a "
        "process that keeps one of the cores busy; the share that is kept, median [quartiles] of "
        f"{contents[0]['settings']['rounds']} rounds.\n\n{markdown_table(columns, rows)}"
    )


def agreement_section(contents: Sequence[Content]) -> str:
    """Of agreement's results."""
    parts = []
    for content in contents:
        reference = content["reference"]
        parts.append(
            f"\n{reference['model']}, {reference['bench_name']}, beside {reference['dtype']} on "
            f"{reference['device']}:\n\n{markdown_table(agreement.COLUMNS, content['traces'])}"
        )
    return (
        "## Answers beside those of another device\n\n"
        "`python -m benchmarks.agreement`: traces beside those of the same methods and questions "
        "made otherwise. `equal`: turns that are the same, token for token; `parts after`: the "
        "median number of tokens before the first that differs, of the others; `same accept "
        "lengths`: questions whose steps all accepted as many.\n" + "".join(parts)
    )
