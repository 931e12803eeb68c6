"""Tokens per second in vLLM, by concurrency: python -m benchmarks.in_vllm --help.

A server for each method, all with the same model. They take turns: one answers the prompts of a
cell, so many at a time, while the others have nothing to do; on a CPU their processes stand still.
No prompt is asked twice of a server, so no method can know an answer from before.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from evaluation.asking.questions import load_questions, question_path
from evaluation.asking.settings import TargetSettings
from evaluation.asking.target import Target
from evaluation.command.flags import read
from evaluation.command.parser import Parser, at_least, plain_name
from evaluation.pictures.style import looks, new_figure, save_figure
from model.logitspec.devices import resolve_device
from model.logitspec.errors import InputError
from model.logitspec.vllm.proposers import EVIDENCE

from .measure import (
    AS_THERE,
    MODEL,
    Columns,
    Figures,
    PrintedTable,
    Results,
    run_benchmark,
)
from .vllm_server import VllmServer, increase

OURS = "custom_class"
METHODS: dict[str, Figures | None] = {
    "none": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 5},
    "ngram tuned": {
        "method": "ngram", "num_speculative_tokens": 8,
        "prompt_lookup_min": 2, "prompt_lookup_max": 4,
    },
    "suffix": {"method": "suffix"},
    "logitspec": {"method": OURS, "model": "logitspec.vllm.LogitSpecProposer"},
    "calibrated": {"method": OURS, "model": "logitspec.vllm.CalibratedProposer"},
    "calibrated warm": {"method": OURS, "model": "logitspec.vllm.CalibratedProposer"},
}  # fmt: skip
WARM = "calibrated warm"
BASE = "none"
CELLS: Columns = {
    "method": (12, "{method}"),
    "at once": (7, "{concurrency}"),
    "round": (5, "{round}"),
    "tokens/s": (8, "{speed:.1f}"),
    "tokens a step": (13, "{mat:.2f}"),
    "drafts right": (12, "{right:.0%}"),
    "equal": (9, "{equal} of {answers}"),
}
SUMMARY: Columns = {
    "method": (12, "{method}"),
    "at once": (7, "{concurrency}"),
    "tokens/s": (8, "{speed:.1f}"),
    "× none": (7, "{over_none:.2f}"),
    "× best of others": (16, "{over_best:.2f}"),
    "tokens a step": (13, "{mat:.2f}"),
    "drafts right": (12, "{right:.0%}"),
    "equal": (10, "{equal} of {answers}"),
}
WARMUP_TOKENS = 16
KV_BYTES = 2**31  # of a server's cache on a GPU


def shares(counted: Figures, tokens: int) -> Figures:
    """Tokens a step of a request, and the share of drafts that were right, by vLLM's metrics, which
    count drafts behind an answer's end, too."""
    accepted, drafted = counted["accepted"], counted["drafted"]
    return {
        "mat": tokens / max(1.0, tokens - accepted),
        "right": accepted / drafted if drafted else 0.0,
    }


def prompts_of(args: argparse.Namespace, target: Target) -> list[list[int]]:
    """The prompts of all sets that are short enough, mixed."""
    questions = [q for name in args.benches for q in load_questions(question_path(name))]
    random.Random(0).shuffle(questions)
    asked = [target.prompts.start().ask(question.turns[0]) for question in questions]
    short = [ids for ids in asked if len(ids) <= args.most_prompt_tokens]
    wanted = args.rounds * sum(args.prompts) + 1  # one to warm up with
    if len(short) < wanted:
        raise InputError(
            f"--rounds {args.rounds} and --prompts {args.prompts} take {wanted} prompts, and "
            f"{', '.join(args.benches)} have {len(short)} of at most {args.most_prompt_tokens} "
            "tokens; ask fewer"
        )
    return short


def answer_all(
    server: VllmServer, prompts: Sequence[list[int]], concurrency: int, max_new_tokens: int
) -> tuple[list[list[int]], Figures]:
    """The answers of a server to prompts, so many at a time; seconds, and what it counted."""
    before = server.counts()
    with ThreadPoolExecutor(concurrency) as pool:
        start = time.perf_counter()
        asked = [pool.submit(server.ask, ids, max_new_tokens) for ids in prompts]
        answers = [each.result()["output_ids"] for each in asked]
        seconds = time.perf_counter() - start
    return answers, {"seconds": seconds, **increase(before, server.counts())}


def run(args: argparse.Namespace) -> None:
    if len(args.prompts) != len(args.concurrency):
        raise InputError(
            f"--prompts has {len(args.prompts)} numbers for {len(args.concurrency)} of "
            "--concurrency; give one for each"
        )
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown or args.methods[:1] != [BASE]:
        raise InputError(
            f"--methods {','.join(args.methods)}: give {BASE} first, then of "
            f"{', '.join(list(METHODS)[1:])}"
        )
    if WARM in args.methods and args.evidence is None:
        raise InputError(f"--methods has {WARM!r}, and there is no --evidence; give one")
    if args.evidence is not None and not args.evidence.is_file():
        raise InputError(f"--evidence {args.evidence} is no file; give one")
    python = shutil.which(args.vllm_python)
    if python is None:
        raise InputError(f"--vllm-python {args.vllm_python} is no program; give a python with vLLM")
    resolve_device(args.device)
    target = Target.resolve(read(TargetSettings, args, device="cpu", cpu_kernels="plain"))
    prompts = prompts_of(args, target)
    results = Results(args, args.device)
    on_cpu = args.device == "cpu"
    # Nearer to the longest sequence vLLM verifies dummy drafts of all requests; suffix drafts 24
    room = max(32, args.drafts + 8)
    flags = [
        "--dtype", args.dtype, "--max-num-seqs", str(max(args.concurrency)),
        "--max-model-len", str(args.most_prompt_tokens + args.max_new_tokens + room),
    ]  # fmt: skip
    if not on_cpu:  # of a GPU, a server takes most of the memory unless it is told what it needs
        flags += ["--kv-cache-memory-bytes", str(KV_BYTES)]
        flags += ["--gpu-memory-utilization", f"{0.9 / len(args.methods):.2f}"]
    with ExitStack() as stack:
        servers: dict[str, VllmServer] = {}
        for name in args.methods:
            speculation = METHODS[name]
            if speculation is not None and is_ours(name):
                speculation = {**speculation, "num_speculative_tokens": args.drafts}
            variables = {EVIDENCE: str(args.evidence.resolve())} if name == WARM else {}
            print(f"starting vLLM with {name}", flush=True)
            servers[name] = VllmServer(python, args.model_path, speculation, flags, variables)
            stack.callback(servers[name].close)
            if on_cpu:
                begin(servers[name], prompts[-1])
                servers[name].pause()
        if not on_cpu:  # they load at the same time
            for server in servers.values():
                begin(server, prompts[-1])
        with turn(servers[BASE], on_cpu):
            results.put("engine", [{"vllm": servers[BASE].version()}])
        table = results.table("cells", "each method's turn", CELLS)
        at = 0
        for number in range(args.rounds):
            apart = number * len(servers) // args.rounds  # so that no method is late in all rounds
            for level, count in enumerate(args.prompts):
                names = rotated([*servers], apart + level)
                asked = prompts[at : at + count]
                ask_turn(args, servers, names, table, number, args.concurrency[level], asked)
                at += count
    show(results.content["cells"])
    if args.plot is not None:
        draw(results.content["cells"], args.plot)


def begin(server: VllmServer, prompt_ids: list[int]) -> None:
    """Wait until a server has loaded its model and answered something."""
    server.ready()
    server.ask(prompt_ids, WARMUP_TOKENS)


@contextmanager
def turn(server: VllmServer, others_stand_still: bool) -> Iterator[None]:
    """Have a server run that stands still before and after, where the others do."""
    if not others_stand_still:
        yield
        return
    server.go_on()
    yield
    server.pause()


def rotated(names: Sequence[str], by: int) -> list[str]:
    first = by % len(names)
    return [*names[first:], *names[:first]]


def ask_turn(
    args: argparse.Namespace, servers: dict[str, VllmServer], names: Sequence[str],
    table: PrintedTable, number: int, concurrency: int, prompts: Sequence[list[int]],
) -> None:  # fmt: skip
    """Have every server answer the same prompts, in the order of these names."""
    found: dict[str, tuple[list[list[int]], Figures]] = {}
    for name in names:
        with turn(servers[name], args.device == "cpu"):
            found[name] = answer_all(servers[name], prompts, concurrency, args.max_new_tokens)
    plain, _ = found[BASE]
    for name in servers:
        answers, counted = found[name]
        tokens = sum(map(len, answers))
        row = {
            "method": name, "concurrency": concurrency, "round": number, "tokens": tokens,
            "speed": tokens / counted["seconds"], **counted,
            "equal": sum(own == other for own, other in zip(answers, plain, strict=True)),
            "answers": len(answers),
        }  # fmt: skip
        table.add({**row, **shares(counted, tokens)})


def is_ours(method: str) -> bool:
    speculation = METHODS[method]
    return speculation is not None and speculation["method"] == OURS


def summary(cells: Sequence[Figures]) -> list[Figures]:
    """Of each method and concurrency: medians over the rounds, ratios within a round."""
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    found = []
    for concurrency in dict.fromkeys(cell["concurrency"] for cell in cells):
        own = {m: [c for c in cells if (c["method"], c["concurrency"]) == (m, concurrency)]
               for m in methods}  # fmt: skip
        for name, rows in own.items():
            others = [own[m] for m in methods if m != name and not is_ours(m)] or [rows]
            best = [max(row["speed"] for row in at) for at in zip(*others, strict=True)]
            counted = {n: sum(row[n] for row in rows) for n in ("accepted", "drafted")}
            found.append(
                {
                    "method": name,
                    "concurrency": concurrency,
                    "speed": median(row["speed"] for row in rows),
                    "over_none": median(
                        row["speed"] / base["speed"]
                        for row, base in zip(rows, own[BASE], strict=True)
                    ),
                    "over_best": median(
                        row["speed"] / speed for row, speed in zip(rows, best, strict=True)
                    ),
                    **shares(counted, sum(row["tokens"] for row in rows)),
                    "equal": sum(row["equal"] for row in rows),
                    "answers": sum(row["answers"] for row in rows),
                }
            )
    return found


def show(cells: Sequence[Figures]) -> None:
    title = "medians over the rounds; the others are none and vLLM's own methods"
    table = PrintedTable(title, SUMMARY)
    for row in summary(cells):
        table.add(row)


def draw(cells: Sequence[Figures], path: Path) -> None:
    """Tokens per second over concurrency, beside no speculation."""
    rows = summary(cells)
    names = list(dict.fromkeys(row["method"] for row in rows))
    figure = new_figure()
    axes = figure.subplots()
    style = looks({name: name.partition(" ")[0] for name in names})
    for name in names:
        own = [row for row in rows if row["method"] == name]
        axes.plot(
            [row["concurrency"] for row in own], [row["over_none"] for row in own],
            label=name, **style[name].line(),
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    ticks = sorted({row["concurrency"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("requests at once")
    axes.set_ylabel("tokens/s over vLLM without speculation")
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, path)
    print(f"drawn: {path}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.in_vllm", "Tokens per second in vLLM, by concurrency.")
    add = parser.add_argument
    add("--vllm-python", default="python", metavar="FILE", help="of an environment with vLLM")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="that this vLLM is built for")
    add("--model-path", default=MODEL, help="checkpoint: a local directory or a hub id")
    add("--benches", nargs="+", default=["spec_bench", "humaneval"], type=plain_name,
        metavar="NAME", help="data/NAME/question.jsonl; first turns")  # fmt: skip
    usual = ",".join(name for name in METHODS if name != WARM)
    add("--methods", type=lambda text: text.split(","), default=usual, metavar="A,B,...",
        help=f"{BASE}, then others of {', '.join(list(METHODS)[1:])}")  # fmt: skip
    add("--evidence", type=Path, metavar="FILE.npz", help=f"with which {WARM!r} begins")
    add("--concurrency", nargs="+", type=at_least(1), default=[1, 4, 16, 32], metavar="N",
        help="requests at once")  # fmt: skip
    add("--prompts", nargs="+", type=at_least(1), default=[8, 16, 32, 64], metavar="N",
        help="of each of these, in a round")  # fmt: skip
    add("--rounds", type=at_least(1), default=3, help="each has prompts of its own")
    add("--max-new-tokens", type=at_least(1), default=128, help="most tokens per answer")
    add("--most-prompt-tokens", type=at_least(1), default=400, help="longer prompts are left out")
    add("--drafts", type=at_least(1), default=8, help="most of a request in a step, of ours")
    add("--dtype", default="float32", help="float32, bfloat16 or float16")
    add("--conv-template", metavar="NAME", help=AS_THERE)
    return run_benchmark(parser, argv, run, plot=True)


if __name__ == "__main__":
    sys.exit(main())
