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


NO_MODEL = "no model stated"
# What a leaderboard lists of AIME without a year, of MATH and of LongBench as a whole is left out:
# no benchmark here is the same.
WIZWAND, WIZWAND_AGAIN = "wizwand leaderboard", "wizwand leaderboard, second entry"
RACER = "RACER paper, RTX 4090"
ECHO, ECHO_13B = "ECHO paper, RTX 3090", "ECHO paper, A40"
SPEC_BENCH = "Spec-Bench leaderboard, A100"
SPEC_BENCH_3090 = "Spec-Bench leaderboard, RTX 3090"
SAM = "SAM-Decoding paper, A6000"
ADAPLD = "AdaPLD paper, H20"
STAND = "STAND paper, A100"
ABOUT = {  # the sources, by how their names begin
    "wizwand leaderboard": "figures under the LogitSpec paper's name, which are not in its tables; "
    "the abstract (arXiv 2507.01449) has 2.61 and 3.28 MAT at most, without benchmark and model",
    "RACER": "arXiv 2604.14885",
    "ECHO": "arXiv 2609.17241, table 1, LayerSkip weights; its table 6 gives other figures for "
    "Llama-3-8B, and a speedup above MAT, as LogitSpec's on HumanEval with Llama-2-7B, is "
    "implausible",
    "Spec-Bench leaderboard": "github.com/hemingkx/Spec-Bench",
    "SAM-Decoding": "arXiv 2411.10666",
    "AdaPLD": "arXiv 2606.05742",
    "STAND": "arXiv 2506.04708, 4 samples a problem",
}

PUBLISHED = (
    Published("humaneval", "LogitSpec", NO_MODEL, 2.47, None, WIZWAND),
    Published("cnndm", "LogitSpec", NO_MODEL, None, 3.28, WIZWAND),
    Published("cnndm", "LogitSpec", NO_MODEL, None, 2.04, WIZWAND_AGAIN),
    Published("gsm8k", "LogitSpec", NO_MODEL, None, 4.44, WIZWAND),
    Published("aime25", "LogitSpec", NO_MODEL, 3.33, None, WIZWAND),
    Published("spec_bench", "PLD", "Vicuna-7B", 1.50, None, RACER),
    Published("spec_bench", "LogitSpec", "Vicuna-7B", 1.77, None, RACER),
    Published("spec_bench", "Token Recycling", "Vicuna-7B", 2.06, None, RACER),
    Published("spec_bench", "RACER", "Vicuna-7B", 2.21, 3.00, RACER),
    Published("humaneval", "PLD", "Vicuna-7B", 1.40, None, RACER),
    Published("humaneval", "LogitSpec", "Vicuna-7B", 1.66, None, RACER),
    Published("humaneval", "Token Recycling", "Vicuna-7B", 2.17, None, RACER),
    Published("humaneval", "RACER", "Vicuna-7B", 2.29, 3.11, RACER),
    Published("mgsm_zh", "PLD", "Vicuna-7B", 2.27, None, RACER),
    Published("mgsm_zh", "LogitSpec", "Vicuna-7B", 2.67, None, RACER),
    Published("mgsm_zh", "Token Recycling", "Vicuna-7B", 2.30, None, RACER),
    Published("mgsm_zh", "RACER", "Vicuna-7B", 2.77, None, RACER),
    Published("spec_bench", "LogitSpec", "Llama-2-7B", 2.16, 2.73, ECHO),
    Published("humaneval", "LogitSpec", "Llama-2-7B", 2.82, 2.61, ECHO),
    Published("gsm8k", "LogitSpec", "Llama-2-7B", 2.35, 3.69, ECHO),
    Published("spec_bench", "Token Recycling", "Llama-2-7B", 2.03, 3.00, ECHO),
    Published("humaneval", "Token Recycling", "Llama-2-7B", 2.52, 3.18, ECHO),
    Published("gsm8k", "Token Recycling", "Llama-2-7B", 2.17, 3.62, ECHO),
    Published("spec_bench", "LogitSpec", "Llama-3-8B", 1.54, 2.05, ECHO),
    Published("humaneval", "LogitSpec", "Llama-3-8B", 2.12, 3.53, ECHO),
    Published("gsm8k", "LogitSpec", "Llama-3-8B", 1.94, 2.59, ECHO),
    Published("spec_bench", "Token Recycling", "Llama-3-8B", 1.93, 2.75, ECHO),
    Published("humaneval", "Token Recycling", "Llama-3-8B", 2.54, 3.23, ECHO),
    Published("gsm8k", "Token Recycling", "Llama-3-8B", 2.06, 3.21, ECHO),
    Published("spec_bench", "LogitSpec", "Llama-2-13B", 1.90, 2.31, ECHO_13B),
    Published("humaneval", "LogitSpec", "Llama-2-13B", 2.33, 2.83, ECHO_13B),
    Published("gsm8k", "LogitSpec", "Llama-2-13B", 2.25, 2.76, ECHO_13B),
    Published("spec_bench", "Token Recycling", "Llama-2-13B", 2.22, 2.91, ECHO_13B),
    Published("humaneval", "Token Recycling", "Llama-2-13B", 2.76, 3.23, ECHO_13B),
    Published("gsm8k", "Token Recycling", "Llama-2-13B", 2.56, 3.74, ECHO_13B),
    Published("spec_bench", "Lookahead", "Vicuna-7B-v1.3", 1.34, 1.64, SPEC_BENCH),
    Published("spec_bench", "REST", "Vicuna-7B-v1.3", 1.48, 1.82, SPEC_BENCH),
    Published("spec_bench", "PLD", "Vicuna-7B-v1.3", 1.66, 1.75, SPEC_BENCH),
    Published("spec_bench", "Token Recycling", "Vicuna-7B-v1.3", 2.22, 2.73, SPEC_BENCH),
    Published("spec_bench", "EAGLE-2", "Vicuna-7B-v1.3", 2.36, 4.34, SPEC_BENCH),
    Published("spec_bench", "SAMD[EAGLE2]", "Vicuna-7B-v1.3", 2.73, 4.58, SPEC_BENCH),
    Published("spec_bench", "Lookahead", "Vicuna-7B-v1.3", 1.13, 1.64, SPEC_BENCH_3090),
    Published("spec_bench", "REST", "Vicuna-7B-v1.3", 1.28, 1.63, SPEC_BENCH_3090),
    Published("spec_bench", "PLD", "Vicuna-7B-v1.3", 1.64, 1.73, SPEC_BENCH_3090),
    Published("spec_bench", "Token Recycling", "Vicuna-7B-v1.3", 1.40, 2.73, SPEC_BENCH_3090),
    Published("humaneval", "Lookahead", "Vicuna-7B", 1.54, 1.76, SAM),
    Published("humaneval", "REST", "Vicuna-7B", 1.74, 1.85, SAM),
    Published("spec_bench", "SAM", "Vicuna-7B", 1.84, 2.30, SAM),
    Published("humaneval", "SAM", "Vicuna-7B", 2.29, 2.64, SAM),
    Published("spec_bench", "SAM[Token Recycling]", "Vicuna-7B", 2.27, 3.03, SAM),
    Published("humaneval", "SAM[Token Recycling]", "Vicuna-7B", 2.45, 2.94, SAM),
    Published("spec_bench", "SAM[Token Recycling]", "Llama-3-8B", 2.05, 2.63, SAM),
    Published("aime24", "AdaPLD", "Vicuna-7B", 2.98, None, ADAPLD),
    Published("math500", "AdaPLD", "Vicuna-7B", 2.55, None, ADAPLD),
    Published("aime24", "LogitSpec", "Vicuna-7B", 3.15, None, ADAPLD),
    Published("math500", "LogitSpec", "Vicuna-7B", 2.68, None, ADAPLD),
    Published("aime24", "SAM-Decoding", "Vicuna-7B", 2.78, None, ADAPLD),
    Published("math500", "SAM-Decoding", "Vicuna-7B", 2.32, None, ADAPLD),
    Published("aime24", "Token Recycling", "Vicuna-7B", 2.22, None, ADAPLD),
    Published("math500", "Token Recycling", "Vicuna-7B", 2.36, None, ADAPLD),
    Published("aime24", "AdaPLD", "Vicuna-13B", 2.56, None, ADAPLD),
    Published("math500", "AdaPLD", "Vicuna-13B", 2.26, None, ADAPLD),
    Published("aime24", "LogitSpec", "Vicuna-13B", 2.33, None, ADAPLD),
    Published("math500", "LogitSpec", "Vicuna-13B", 2.12, None, ADAPLD),
    Published("aime24", "SAM-Decoding", "Vicuna-13B", 2.34, None, ADAPLD),
    Published("math500", "SAM-Decoding", "Vicuna-13B", 1.95, None, ADAPLD),
    Published("aime24", "Token Recycling", "Vicuna-13B", 1.64, None, ADAPLD),
    Published("math500", "Token Recycling", "Vicuna-13B", 1.65, None, ADAPLD),
    Published("aime24", "AdaPLD", "Vicuna-33B", 2.10, None, ADAPLD),
    Published("math500", "AdaPLD", "Vicuna-33B", 2.02, None, ADAPLD),
    Published("aime24", "LogitSpec", "Vicuna-33B", 1.60, None, ADAPLD),
    Published("math500", "LogitSpec", "Vicuna-33B", 1.64, None, ADAPLD),
    Published("aime24", "SAM-Decoding", "Vicuna-33B", 1.84, None, ADAPLD),
    Published("math500", "SAM-Decoding", "Vicuna-33B", 1.75, None, ADAPLD),
    Published("aime24", "Token Recycling", "Vicuna-33B", 1.37, None, ADAPLD),
    Published("math500", "Token Recycling", "Vicuna-33B", 1.41, None, ADAPLD),
    Published("aime24", "STAND", "R1-Distill-Qwen-7B", 2.44, None, STAND),
    Published("aime24", "Token Recycling", "R1-Distill-Qwen-7B", 2.30, None, STAND),
    Published("aime24", "SAM-Decoding", "R1-Distill-Qwen-7B", 1.67, None, STAND),
)
