"""Runs vLLM and prints what came of it as JSON: python vllm_child.py JOB MODEL.

test_vllm_engine.py starts it with the python of an environment with vLLM.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FACTS = "LOGITSPEC_TEST_FACTS"  # a file that Watched writes its facts into
DRAFTS = 6
OURS = "logitspec.vllm.CalibratedProposer", "logitspec.vllm.LogitSpecProposer"
GRAMMAR = "(Yes|No), because [a-z ]{20,60}[.]"


def speculation(proposer: str | None) -> dict[str, Any] | None:
    if proposer is None:
        return None
    return {"method": "custom_class", "model": proposer, "num_speculative_tokens": DRAFTS}


def prompts(count: int, shortest: int, longest: int, vocabulary: int) -> list[list[int]]:
    chance = random.Random(0)
    return [
        [chance.randrange(3, vocabulary) for _ in range(chance.randrange(shortest, longest))]
        for _ in range(count)
    ]


def engine(model: str, proposer: str | None, **more: Any) -> Any:
    from vllm import LLM

    return LLM(
        model, dtype="float32", speculative_config=speculation(proposer), disable_log_stats=False,
        max_model_len=512, seed=0, **more,
    )  # fmt: skip


def answers(model: str) -> dict[str, Any]:
    """Answers by proposer: with pieces of prompts, cached prefixes, and a cache so small that
    requests are preempted; with what requests may ask for; and up to the longest sequence."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    asked = json.loads(Path(os.environ["LOGITSPEC_TEST_PROMPTS"]).read_text())
    grammar = StructuredOutputsParams(regex=GRAMMAR)
    kinds = {
        "plain": SamplingParams(temperature=0, max_tokens=60),
        "penalized": SamplingParams(temperature=0, repetition_penalty=1.3, max_tokens=40),
        "by a grammar": SamplingParams(temperature=0, max_tokens=60, structured_outputs=grammar),
        "drawn": SamplingParams(temperature=1.0, max_tokens=20),
    }
    found: dict[str, Any] = {}
    small = {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 24, "max_num_seqs": 6}
    for name in (None, "vllm_child.Steady", "vllm_child.Even", "vllm_child.Blind", *OURS):
        llm = engine(model, name, enable_prefix_caching=True, block_size=32, **small)
        own: dict[str, Any] = {}
        for kind, wanted in kinds.items():
            prompts = asked if kind == "plain" else asked[:5]
            outputs = llm.generate(
                [{"prompt_token_ids": ids} for ids in prompts], wanted, use_tqdm=False
            )
            own[kind] = [[*output.outputs[0].token_ids] for output in outputs]
            if kind == "by a grammar":
                own["texts"] = [output.outputs[0].text for output in outputs]
        if name != "vllm_child.Blind":  # which mends nothing of a step without drafts
            drawn = SamplingParams(temperature=1.0, top_k=20, max_tokens=60)
            outputs = llm.generate(
                [{"prompt_token_ids": ids} for ids in asked[:6]], [kinds["plain"], drawn] * 3,
                use_tqdm=False,
            )  # fmt: skip
            own["beside samples"] = [[*output.outputs[0].token_ids] for output in outputs[::2]]
        longest = (asked[0] * 20)[:480]  # with a neighbour, which is drafted for, too
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in (longest, asked[1])],
            SamplingParams(temperature=0, max_tokens=90, ignore_eos=True), use_tqdm=False,
        )  # fmt: skip
        own["to the end"] = [[*output.outputs[0].token_ids] for output in outputs]
        found[str(name)] = {**own, "metrics": metrics(llm)}
        del llm
    return found


def metrics(llm: Any) -> dict[str, Any]:
    wanted = (
        "num_preemptions", "prefix_cache_hits",
        "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens",
    )  # fmt: skip
    found = {metric.name.removeprefix("vllm:"): metric for metric in llm.get_metrics()}
    places = getattr(found.get("spec_decode_num_accepted_tokens_per_pos"), "values", [])
    return {"places": places, **{name: getattr(found.get(name), "value", 0) for name in wanted}}


def two_ranks(model: str) -> dict[str, Any]:
    """Greedy answers of one rank without drafts, and of two with them."""
    from vllm import SamplingParams

    asked = prompts(6, 5, 60, 90)
    found: dict[str, Any] = {}
    for name, proposer, ranks in (
        ("none", None, 1), ("two", None, 2), ("drafted", "vllm_child.Watched", 2),
    ):  # fmt: skip
        cores = sorted(os.sched_getaffinity(0))[:ranks]  # one for each rank, which vLLM wants told
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, cores))
        llm = engine(model, proposer, tensor_parallel_size=ranks, skip_tokenizer_init=True)
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in asked],
            SamplingParams(temperature=0, max_tokens=80, detokenize=False, ignore_eos=True),
            use_tqdm=False,
        )
        found[name] = {
            "tokens": [[*output.outputs[0].token_ids] for output in outputs],
            "metrics": metrics(llm),
        }
        del llm
    return found


def load(model: str) -> dict[str, Any]:
    """A thousand requests, some of which are aborted or whose client goes away; and what vLLM
    answers without speculation to those with greedy answers that ended."""
    from vllm import SamplingParams

    found = asyncio.run(ask_all(model, 1000))
    asked = prompts(1000, 2, 100, 90)
    llm = engine(model, None, skip_tokenizer_init=True, max_num_seqs=16)
    outputs = llm.generate(
        [{"prompt_token_ids": asked[number]} for number in found["answers"]],
        [
            SamplingParams(temperature=0, max_tokens=len(own), detokenize=False, ignore_eos=True)
            for own in found["answers"].values()
        ],
        use_tqdm=False,
    )
    plain = [[*output.outputs[0].token_ids] for output in outputs]
    equal = sum(own == other for own, other in zip(found["answers"].values(), plain, strict=True))
    return {**found, "answers": len(plain), "equal": equal}


async def ask_all(model: str, count: int) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    running = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model,
            dtype="float32",
            speculative_config=speculation("vllm_child.Watched"),
            skip_tokenizer_init=True,
            max_model_len=512,
            max_num_seqs=16,
        )
    )
    chance = random.Random(1)
    asked = prompts(count, 2, 100, 90)
    done = {"ended": 0, "aborted": 0, "gone": 0}
    answers: dict[int, list[int]] = {}  # the greedy ones that ended
    places = asyncio.Semaphore(24)

    async def read(number: int, length: int, most: int) -> None:
        wanted = SamplingParams(
            temperature=chance.choice([0.0, 1.0]), max_tokens=length, detokenize=False,
            ignore_eos=True,
        )  # fmt: skip
        tokens: list[int] = []
        async for output in running.generate(
            {"prompt_token_ids": asked[number]}, wanted, f"request-{number}"
        ):
            tokens = [*output.outputs[0].token_ids]
            if len(tokens) >= most:
                done["aborted"] += 1
                await running.abort(f"request-{number}")
                return
        done["ended"] += 1
        assert len(tokens) == length
        if not wanted.temperature:
            answers[number] = tokens

    async def ask(number: int) -> None:
        async with places:
            length = chance.randrange(1, 80)
            kind = chance.random()
            most = chance.randrange(1, 80) if kind < 0.2 else 10**6
            reading = asyncio.create_task(read(number, length, most))
            if kind > 0.9:  # a client that does not wait
                await asyncio.sleep(chance.random() * 0.3)
                reading.cancel()
                done["gone"] += 1
            await asyncio.gather(reading, return_exceptions=kind > 0.9)

    await asyncio.gather(*map(ask, range(count)))
    # What ended is only seen in the next step
    await ask(0)
    await asyncio.sleep(1)
    running.shutdown()
    facts = [json.loads(line) for line in Path(os.environ[FACTS]).read_text().splitlines()]
    return {**done, "answers": answers, "facts": facts}


def held() -> float:
    """MiB that this process holds."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


try:
    from logitspec.vllm import CalibratedProposer
except ImportError:  # where the tests import this file
    pass
else:

    class Watched(CalibratedProposer):
        """Writes down how many requests it follows, and what its process holds."""

        steps = 0

        def propose(self, *some: Any, **more: Any) -> list[list[int]]:
            found = super().propose(*some, **more)
            self.steps += 1
            path = os.environ.get(FACTS)
            if path and self.steps % 50 == 0:
                followed = len(self.requests)
                idle = len(self.chains._idle)
                with Path(path).open("a") as file:
                    file.write(json.dumps([self.steps, len(found), followed, idle, held()]) + "\n")
            return found

    class Steady(CalibratedProposer):
        """Drafts as much as it may, whatever a step costs."""

        def __init__(self, config: Any, **more: Any) -> None:
            super().__init__(config, **more)
            self.budget.note = lambda *_, **__: None  # type: ignore[method-assign]

    class Even(Steady):
        """The same as where vLLM replays even steps, so every request has as many drafts."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            mode = SimpleNamespace(name="FULL")
            mode.separate_routine, mode.decode_mode = (lambda: True), (lambda: mode)
            self._compiling = SimpleNamespace(cudagraph_mode=mode, max_cudagraph_capture_size=512)

    class Blind(Steady):
        """The same without the logits."""

        def __init__(self, config: Any) -> None:
            super().__init__(config, watch=lambda: "not wanted")


if __name__ == "__main__":
    job = {"answers": answers, "two_ranks": two_ranks, "load": load}[sys.argv[1]]
    print("\nFOUND " + json.dumps(job(sys.argv[2])))
