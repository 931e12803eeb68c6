"""Figures that others published, measured on their machines and models. The tables append them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One method's result on one benchmark; None where the source does not give it."""

    bench_name: str
    method: str
    model: str
    speedup: float | None
    mat: float | None
    source: str


# The LogitSpec paper's abstract (arXiv 2507.01449) gives a speedup of up to 2.61 and 3.28 mean
# accepted tokens, and names neither benchmark nor model. A leaderboard lists the figures
# below under the paper's name. It states neither the model nor where they come from.
WIZWAND = "wizwand leaderboard, origin not stated"
ABSTRACT = f"{WIZWAND}; the abstract of arXiv 2507.01449 has 3.28 without a benchmark"
RACER = "RACER paper, arXiv 2604.14885"
ECHO = "ECHO paper, table 1, RTX 3090"
SPEC_BENCH = "Spec-Bench leaderboard, A100"

PUBLISHED = (
    Published("humaneval", "LogitSpec", "model not stated", 2.47, None, WIZWAND),
    Published("cnndm", "LogitSpec", "model not stated", None, 3.28, ABSTRACT),
    Published("gsm8k", "LogitSpec", "model not stated", None, 4.44, WIZWAND),
    Published("spec_bench", "PLD", "Vicuna-7B", 1.50, None, RACER),
    Published("spec_bench", "LogitSpec", "Vicuna-7B", 1.77, None, RACER),
    Published("spec_bench", "Token Recycling", "Vicuna-7B", 2.06, None, RACER),
    Published("spec_bench", "RACER", "Vicuna-7B", 2.21, 3.00, RACER),
    Published("humaneval", "PLD", "Vicuna-7B", 1.40, None, RACER),
    Published("humaneval", "LogitSpec", "Vicuna-7B", 1.66, None, RACER),
    Published("humaneval", "Token Recycling", "Vicuna-7B", 2.17, None, RACER),
    Published("humaneval", "RACER", "Vicuna-7B", 2.29, 3.11, RACER),
    Published("spec_bench", "LogitSpec", "Llama-2-7B", 2.16, 2.73, ECHO),
    Published("humaneval", "LogitSpec", "Llama-2-7B", 2.82, 2.61, ECHO),
    Published("gsm8k", "LogitSpec", "Llama-2-7B", 2.35, 3.69, ECHO),
    Published("spec_bench", "Token Recycling", "Llama-2-7B", 2.03, 3.00, ECHO),
    Published("humaneval", "Token Recycling", "Llama-2-7B", 2.52, 3.18, ECHO),
    Published("gsm8k", "Token Recycling", "Llama-2-7B", 2.17, 3.62, ECHO),
    Published("spec_bench", "LogitSpec", "Llama-3-8B", 1.54, 2.05, ECHO),
    Published("humaneval", "LogitSpec", "Llama-3-8B", 2.12, 3.53, ECHO),
    Published("gsm8k", "LogitSpec", "Llama-3-8B", 1.94, 2.59, ECHO),
    Published("spec_bench", "PLD", "Vicuna-7B-v1.3", 1.66, 1.75, SPEC_BENCH),
    Published("spec_bench", "Token Recycling", "Vicuna-7B-v1.3", 2.22, 2.73, SPEC_BENCH),
    Published("spec_bench", "EAGLE-2", "Vicuna-7B-v1.3", 2.36, 4.34, SPEC_BENCH),
    Published("spec_bench", "SAMD[EAGLE2]", "Vicuna-7B-v1.3", 2.73, 4.58, SPEC_BENCH),
)
