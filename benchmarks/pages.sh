#!/bin/sh
# Measure what docs/performance.md and docs/results.md show, and write the two pages.
#
#   sh benchmarks/pages.sh                both pages
#   sh benchmarks/pages.sh performance    one of them
#   sh benchmarks/pages.sh results        the other; needs `python -m data.prepare all`
#
# What is measured already is kept: the traces in data/BENCH/model_answer/MACHINE-*, the other
# figures in FIGURES. Move them away to measure again.
#
# Set any of these in the environment:
#   MACHINE     names the traces and the folder of figures           (default: amd-epyc-2-cores)
#   FIGURES     folder of figures                          (default: benchmarks/results/MACHINE)
#   MODEL_PATH  checkpoint                       (default: checkpoints/smollm2-135m-instruct)
#   DOCS        folder that the pages are written into                          (default: docs)
#   SPARSER     ask only every so many-th of the questions, to try this out         (default: 1)
#   PYTHON      interpreter, with the extras `plots` and `suffix` installed    (default: python)
set -eu

page=${1-both}
case "$page" in
    both | performance | results) ;;
    *)
        echo "pages.sh: unknown page $page; give performance, results or nothing" >&2
        exit 2
        ;;
esac
cd "$(dirname "$0")/.."
MACHINE=${MACHINE:-amd-epyc-2-cores}
MODEL_PATH=${MODEL_PATH:-checkpoints/smollm2-135m-instruct}
DOCS=${DOCS:-docs}
SPARSER=${SPARSER:-1}
FIGURES=${FIGURES:-benchmarks/results/$MACHINE}
seven=baseline,hf_pld,vanilla,pld,suffix,recycling,logitspec

python() { command "${PYTHON:-python}" "$@"; }

ask() { # NAME BENCH STRIDE METHODS [FLAG...]: one run; its traces are data/BENCH/model_answer/MACHINE-NAME-*
    name=$1 bench=$2 stride=$3 methods=$4
    shift 4
    python -m evaluation.run --model-path "$MODEL_PATH" --model-id "$MACHINE-$name" --bench-name "$bench" \
        --question-stride $((stride * SPARSER)) --methods "$methods" --max-new-tokens 128 --cap-new-tokens "$@" ||
        [ $? -eq 3 ] # 3: done but for questions that could not be answered
}

traces() { # NAME BENCH METHODS: the files of such a run, in the order of the methods
    echo "$3" | tr ',' '\n' | sed "s|.*|data/$2/model_answer/$MACHINE-$1-&.jsonl|"
}

performance() {
    methods=$seven,racer,calibrated,calibrated@auto
    for dtype in bfloat16 float32; do
        stride=48
        if [ $dtype = float32 ]; then stride=96; fi
        ask "performance-$dtype" spec_bench $stride $methods --dtype $dtype --warmup 3
        # shellcheck disable=SC2046
        python -m evaluation.tables $(traces performance-$dtype spec_bench $methods) \
            --first-turns --json "$FIGURES/methods-$dtype.json"
    done
    if [ ! -e "$FIGURES/step_cost.json" ]; then
        python -m benchmarks.step_cost --model-path "$MODEL_PATH" --dtype bfloat16 float32 --context 256 1024 4096 \
            --nodes 4 8 16 32 64 --rounds 9 --json "$FIGURES/step_cost.json"
    fi
    if [ ! -e "$FIGURES/scale.json" ]; then
        python -m benchmarks.scale --model-path "$MODEL_PATH" --rounds 7 --json "$FIGURES/scale.json"
    fi
    python -m benchmarks.report "$FIGURES" --output "$DOCS/performance.md" --notes docs/performance-notes.md
}

results() {
    all=$seven,logitspec@auto,racer,racer@16,calibrated,calibrated@16,calibrated@auto
    ask results spec_bench 24 $all --dtype bfloat16
    ask results humaneval 16 $all --dtype bfloat16 --question-end 160
    ask results gsm8k 30 $all --dtype bfloat16
    ask results cnndm 100 $all --dtype bfloat16
    set --
    for temperature in 0.0 0.3 0.7 1.0; do
        methods=$seven,racer,calibrated,calibrated@auto
        ask temperature-$temperature spec_bench 120 $methods --dtype bfloat16 --temperature $temperature
        # shellcheck disable=SC2046
        set -- "$@" $(traces temperature-$temperature spec_bench $methods)
    done
    # shellcheck disable=SC2046
    python -m evaluation.report $(for bench in spec_bench humaneval gsm8k cnndm; do traces results $bench $all; done) \
        --temperatures "$@" --published --output "$DOCS/results.md" --notes docs/results-notes.md
}

mkdir -p "$FIGURES" "$DOCS"
if [ "$page" != results ]; then performance; fi
if [ "$page" != performance ]; then results; fi
