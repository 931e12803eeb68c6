"""Runs that are killed, stopped and starved of disk: python -m benchmarks.faults --help.

Every fault is tried on whole processes of evaluation.inference_logitspec, at random moments, and
each time gone on with. What was on disk before a fault must be there after it, and the trace in the
end must hold what an undisturbed run's does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.command.exits import Incomplete
from evaluation.command.files import ROOT
from evaluation.command.parser import Parser, at_least, plain_name
from evaluation.traces.sidecars import meta_path
from model.logitspec.errors import InputError

from .measure import AS_THERE, MODEL, Figures, Results, run_benchmark

SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
FAULTS = (*SIGNALS, "worker", "disk")
WIDTHS = {"fault": 34, "tried": 5, "while it ran": 12, "lost": 4, "differing": 9, "exit": 30}
COLUMNS = {heading: (width, f"{{{heading}}}") for heading, width in WIDTHS.items()}
Process = subprocess.Popen[bytes]
Start = Callable[[Path], Process]  # a run that writes a trace


def content(path: Path) -> dict[Any, str]:
    """The whole lines of a trace by question, without times and names of their own."""
    found = {}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.split("\n")[:-1]:
        record = json.loads(line)
        for key in ("answer_id", "tstamp"):
            del record[key]
        for choice in record.get("choices", ()):
            for key in [key for key in choice if key.endswith(("_seconds", "_time"))]:
                del choice[key]
        if record["question_id"] in found:
            raise ValueError(f"{path} answers question {record['question_id']} twice")
        found[record["question_id"]] = json.dumps(record, sort_keys=True)
    return found


class Trials:
    """Faults of one kind, one after the other, over as many traces as they take.

    `whole`: what an undisturbed run's trace holds; `never`: exit statuses that are a difference.
    """

    def __init__(
        self, start: Start, folder: Path, whole: dict[Any, str], never: Sequence[int] = ()
    ) -> None:
        self._start, self._whole, self._never = start, whole, never
        self._traces = (folder / f"{number}.jsonl" for number in itertools.count(1))
        self.trace = next(self._traces)
        self.tried = self.hit = self.lost = self.differing = 0
        self.exits: Counter[str] = Counter()

    def one(self, after: float, fault: Callable[[Process], object]) -> None:
        """Begin, or go on with, a run, do this to it after so many seconds, and look at the trace.

        Nothing is done to a run that has ended by then; a fault that is False hit nothing.
        """
        before = content(self.trace)
        process = self._start(self.trace)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            self.hit += fault(process) is not False
        status = process.wait()
        self.tried += 1
        self.differing += status in self._never
        self.exits[str(status)] += 1
        self._check(before, finished=status == 0)
        if status == 0:
            self.trace.unlink()  # a small disk has room for one
            meta_path(self.trace).unlink(missing_ok=True)
            self.trace = next(self._traces)

    def _check(self, before: dict[Any, str], *, finished: bool) -> None:
        """Count what was on disk and is lost; when finished, what differs from the whole."""
        now = content(self.trace)
        self.lost += sum(now.get(key) != line for key, line in before.items())
        if finished:
            keys = now.keys() | self._whole.keys()
            self.differing += sum(now.get(key) != self._whole.get(key) for key in keys)

    def finish(self) -> None:
        """Go on with the last trace until its end, undisturbed."""
        before = content(self.trace)
        status = self._start(self.trace).wait()
        if status != 0:
            raise InputError(f"the run into {self.trace} ended with exit status {status}")
        self._check(before, finished=True)

    def row(self, name: str) -> Figures:
        exits = ", ".join(f"{status}: {count}" for status, count in sorted(self.exits.items()))
        figures = (name, self.tried, self.hit, self.lost, self.differing, exits)
        return dict(zip(COLUMNS, figures, strict=True))


def kill_a_worker(process: Process, chance: random.Random) -> bool:
    """Kill one of a run's Ray workers as soon as there is one; whether there was."""
    while process.poll() is None:
        workers = []
        for pid in descendants(process.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker"):
                    workers.append(pid)
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)
            return True
        time.sleep(0.05)
    return False


def descendants(pid: int) -> list[int]:
    """The processes that a process began, and they in turn."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = place.read_text().rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(place.parent.name))
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())
    return found


@contextlib.contextmanager
def small_disk(kib: int) -> Iterator[Path]:
    """A file system of so many KiB; an InputError where it cannot be mounted."""
    with tempfile.TemporaryDirectory() as place:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", place]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise InputError("there is no mount here; leave out disk (--only)") from error
        if done.returncode:
            raise InputError(f"{done.stderr.strip()}; leave out disk (--only), or be root")
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


class Faults:
    """Tries the faults; the folder is for traces."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self._folder = folder
        self._chance = random.Random(args.seed)
        clock = time.perf_counter()
        whole = folder / "whole.jsonl"
        if self._start(whole).wait() != 0:
            said = (folder / "said.txt").read_text().strip().splitlines()
            raise InputError(
                f"the undisturbed run failed: {said[-1] if said else 'it said nothing'}"
            )
        self.span = time.perf_counter() - clock
        self._whole = content(whole)

    def _start(self, trace: Path, *flags: str) -> Process:
        """A run that answers the questions into this trace, or goes on with it."""
        args = self._args
        command = [
            sys.executable, "-m", "evaluation.inference_logitspec", "--model-path",
            args.model_path, "--model-id", "trial", "--bench-name", args.bench_name,
            "--question-end", str(args.questions), "--max-new-tokens", str(args.max_new_tokens),
            "--device", args.device, "--dtype", args.dtype, "--warmup", "0", "--answer-file",
            str(trace), *flags,
        ]  # fmt: skip
        with (self._folder / "said.txt").open("wb") as said:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=said,
                stderr=said,
                # a shell's background jobs ignore Ctrl-C, and what they begin inherits it
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def try_out(self, name: str) -> Figures:
        """Try one of FAULTS, as often as the flags say; a row of the table."""
        if name == "disk":
            return self._disk_full()
        number = SIGNALS.get(name)
        flags = () if number else ("--num-workers", "2")
        folder = self._folder / name
        folder.mkdir()
        never = (1, 2, 3)  # a crash, bad input, a question that was given up
        trials = Trials(lambda trace: self._start(trace, *flags), folder, self._whole, never)
        for _ in range(self._args.times):
            trials.one(
                self._chance.uniform(0, self.span),
                lambda process: (
                    process.send_signal(number) if number else kill_a_worker(process, self._chance)
                ),
            )
        if number is None:  # a run whose worker is killed ends well
            return trials.row("SIGKILL of one of two workers")
        trials.finish()
        return trials.row(f"{number.name} at a random moment")

    def _disk_full(self) -> Figures:
        """Let the disk fill up, make room, and go on."""
        with small_disk(self._args.disk) as disk:
            trials = Trials(self._start, disk, self._whole)
            ballast = disk / "ballast"
            room = self._args.disk * 1024 // 2
            while room >= 4096:  # less each time
                ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
                trials.one(600, lambda process: process.kill())
                ballast.unlink()
                room //= 2
            trials.finish()
        return trials.row(f"disk of {self._args.disk} KiB full")


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    results = Results(args, args.device)
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(args, Path(folder))
        table = results.table(
            "faults",
            f"{args.model_path}, {args.questions} questions of {args.bench_name}; an undisturbed "
            f"run took {faults.span:.0f} s",
            COLUMNS,
        )
        for name in args.only or FAULTS:
            table.add(faults.try_out(name))
    rows = results.content["faults"]
    bad = sum(row["lost"] + row["differing"] for row in rows)
    print(f"faults tried: {sum(row['tried'] for row in rows)}, answers lost or changed: {bad}")
    if bad:
        raise Incomplete("answers were lost or changed; see the table")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.faults", "Kill, stop and starve runs; count what is lost."
    )
    add = parser.add_argument
    add("--model-path", default=MODEL, help="checkpoint")
    add("--bench-name", default="quick", type=plain_name, help="data/NAME/question.jsonl")
    add("--questions", type=at_least(1), default=16, metavar="N", help="the first N of it")
    add("--max-new-tokens", type=at_least(1), default=48, help="most tokens per turn")
    add("--times", type=at_least(1), default=20, help="each fault but a full disk is tried")
    add("--disk", type=at_least(16), default=128, metavar="KIB", help="size of the disk that fills")
    add("--only", nargs="+", choices=FAULTS, help="these faults alone")
    add("--seed", type=int, default=0, help="of the moments")
    add("--device", default="cpu", help=AS_THERE)
    add("--dtype", default="auto", help=AS_THERE)
    return run_benchmark(parser, argv, report)


if __name__ == "__main__":
    sys.exit(main())
