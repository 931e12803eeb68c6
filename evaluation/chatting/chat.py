"""A loaded model that answers one request at a time in its own thread."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.logitspec import DecodingResult, Drafter, Sampling, decode
from model.logitspec.decoding import Step, check_lengths
from model.logitspec.errors import InputError, brief
from model.logitspec.scoring import Scored, ScoringChooser
from model.logitspec.sizing.measuring import MeasuredModel

from ..asking.engines import Models
from ..asking.methods import check_tokenizer, find_drafter
from ..asking.settings import TargetSettings
from ..asking.target import Target
from .keeping import StateFile

MOST_CHARACTERS = 64  # of a prompt, for each position of the model; tokens have 3 or 4
BEFORE = 8  # last tokens of a prompt, on which the answer's first character may depend
HALF = "\ufffd"  # the decoded form of an incomplete character
STOPPING = "the server stops"

log = logging.getLogger(__name__)


class Text:
    """Incremental text of tokens, without the part that may still change or begins a stop string.

    Only the last tokens are decoded: those whose text is not final, after the ones before them,
    on which a blank or an incomplete character may depend. The text ends before the first string
    of `stop`. It continues the tokens `before`: some tokenizers drop a text's first blank.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = [string for string in stop if string]
        self._ids = list(before)  # after the last final text, and those that ended it
        self._known = len(self._decoded().rstrip(HALF))  # characters of the latter
        self._settled = len(self._ids)  # ids whose text is final
        self._certain = ""  # final text that was not taken
        self._open = ""  # the text after it, which ends in an incomplete character
        self.stopped = False

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def push(self, token: int) -> bool:
        """Add a token; whether the text contains a stop string now."""
        self._ids.append(token)
        text = self._decoded()
        self._open = text[self._known :]
        if self._open and not text.endswith(HALF):  # a token without text may change the next one
            self._certain += self._open
            self._open = ""
            del self._ids[: self._settled]
            self._settled = len(self._ids)
            self._known = len(self._decoded())
        text = self._certain + self._open
        self.stopped = self.stopped or any(string in text for string in self._stop)
        return self.stopped

    def take(self, *, last: bool = False) -> str:
        """The new final text; with `last` all new text."""
        text = self._certain + self._open
        ends = [at for string in self._stop if (at := text.find(string)) >= 0]
        if ends or last:
            self._certain = self._open = ""
            return text[: min(ends)] if ends else text
        text = self._certain
        longest = max(map(len, self._stop), default=1) - 1
        for held in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-held:]) for string in self._stop):
                text = text[:-held]
                break
        self._certain = self._certain[len(text) :]
        return text


@dataclass
class Job:
    """A prompt to be answered; the callbacks are called in the thread that decodes."""

    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling
    stop: Sequence[str] = ()  # strings that end the answer
    on_text: Callable[[str], None] = lambda text: None
    # with the new text of each committed node, empty while a character is incomplete
    on_step: Callable[[Step, list[str]], None] | None = None
    on_end: Callable[[DecodingResult | Exception], None] = lambda result: None
    drafter: Drafter | None = None  # replaces the chat's own
    reuse_prefix: bool = False  # do not read again what it has in common with the last one
    logprobs: int | None = None  # how many best tokens are scored beside each; None: none is
    on_scored: Callable[[list[Scored]], None] = lambda scored: None  # with the new tokens
    raw: bool = False  # the answer continues a text, instead of a conversation
    cancelled: threading.Event = field(default_factory=threading.Event)  # no longer wanted
    finish_reason: str = "length"  # or stop


class TooLong(InputError):
    """A prompt that is too long for the model's positions."""


class Stopping(InputError):
    """The chat has ended and answers nothing."""


class Chat:
    """A target with a drafter, and a thread that answers queued jobs, of which `waiting` may wait.

    `method` is a name as find_method() takes it; `state` is where what it learns is kept.
    InputError: something asked for is missing.
    """

    def __init__(
        self, settings: TargetSettings, method: str, waiting: int = 1, state: Path | None = None
    ) -> None:
        self.target = Target.resolve(settings)
        if self.target.prompts.note:
            print(self.target.prompts.note, file=sys.stderr)
        self.drafter = find_drafter(method)
        check_tokenizer(self.drafter, self.target.tokenizer_fingerprint)
        fingerprint = self.target.tokenizer_fingerprint
        self._state = None if state is None else StateFile(state, self.drafter, fingerprint)
        self.model = Models(self.target, shared=False).kv
        self.drafter.prepare(MeasuredModel(self.model))
        self.waiting = waiting
        self._jobs: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="decoding")
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; InputError if it does not fit the model, queue.Full if too many wait, or
        Stopping."""
        check_lengths(len(job.prompt_ids), job.max_new_tokens, self.target.max_positions)
        with self._changed:
            self._jobs = deque(waiting for waiting in self._jobs if not waiting.cancelled.is_set())
            if self._closed:
                raise Stopping(STOPPING)
            if self.full:
                raise queue.Full
            self._jobs.append(job)
            self._changed.notify()

    @property
    def full(self) -> bool:
        """Whether the queue is full."""
        with self._changed:
            return sum(not job.cancelled.is_set() for job in self._jobs) >= self.waiting

    def stop(self) -> None:
        """Cancel all jobs, call their on_end with Stopping, and refuse new ones."""
        with self._changed:
            self._closed = True
            for job in [*self._jobs, *([self._running] if self._running else [])]:
                if not job.cancelled.is_set():
                    job.cancelled.set()
                    job.on_end(Stopping(STOPPING))
            self._changed.notify()

    def close(self) -> None:
        """Cancel all jobs and end the thread."""
        self.stop()
        self._thread.join()
        if self._state is not None:
            self._state.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = self._running = self._jobs.popleft()
            if job.cancelled.is_set():
                continue
            outcome: DecodingResult | Exception
            try:
                outcome = self.answer(job)
            except Exception as error:  # the thread goes on with the next job
                outcome = error
            if not job.cancelled.is_set():
                if isinstance(outcome, Exception):
                    log.error("decoding failed", exc_info=outcome)
                job.on_end(outcome)
            if self._state is not None:
                self._state.keep()

    def answer(self, job: Job) -> DecodingResult:
        """Answer a job in the calling thread."""
        if job.raw:
            text = Text(self.target.tokenizer, job.stop, job.prompt_ids[-BEFORE:])
        else:
            text = Text(self.target.tokenizer, [*job.stop, *self.target.prompts.stop_strings])
        pieces: list[str] = []  # the text of the step's committed tokens, without an EOS

        def stop(tokens: list[int]) -> bool:
            stopped = text.push(tokens[-1])
            pieces.append(text.take())
            return stopped or job.cancelled.is_set()

        chooser = job.sampling.chooser(job.prompt_ids[:-1])
        if job.logprobs is not None:
            chooser = ScoringChooser(job.sampling, job.prompt_ids[:-1], job.logprobs)

        def commit(tokens: list[int]) -> None:
            if isinstance(chooser, ScoringChooser) and not job.cancelled.is_set():
                job.on_scored(chooser.scored[-len(tokens) :])
            if (new := "".join(pieces)) and not job.cancelled.is_set():
                job.on_text(new)
            if job.on_step is None:
                pieces.clear()

        def step(done: Step) -> None:
            assert job.on_step is not None
            if not job.cancelled.is_set():
                job.on_step(done, pieces + [""] * (len(done.path) - len(pieces)))
            pieces.clear()

        result = decode(
            self.model,
            job.prompt_ids,
            job.drafter or self.drafter,
            max_new_tokens=job.max_new_tokens,
            eos_token_ids=self.target.eos_token_ids,
            stop=stop,
            on_commit=commit,
            on_step=None if job.on_step is None else step,
            chooser=chooser,
            reuse_prefix=job.reuse_prefix,
        )
        if (new := text.take(last=True)) and not job.cancelled.is_set():
            job.on_text(new)
        if text.stopped or result.tokens[-1] in self.target.eos_token_ids:
            job.finish_reason = "stop"
        return result

    def fitting_tokens(self, prompt: Sequence[int], most: int) -> int:
        """How many new tokens the model's positions leave after a prompt: `most`, or fewer."""
        return max(1, min(most, self.target.max_positions - len(prompt)))

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer; InputError if the
        template refuses these messages, or they are far too long."""
        self.check_size(sum(1 + len(text) for message in messages for text in message.values()))
        try:
            return self.target.prompts.chat(messages)
        except InputError:
            raise
        except Exception as error:  # templates raise anything, as for unknown roles
            raise InputError(f"the chat template refuses the messages: {brief(error)}") from error

    def check_size(self, characters: int) -> None:
        """Raise TooLong for a prompt with more characters than any tokens could hold."""
        positions = self.target.max_positions
        if characters > MOST_CHARACTERS * positions:
            raise TooLong(
                f"a prompt of {characters} characters is too long for {positions} positions"
            )
