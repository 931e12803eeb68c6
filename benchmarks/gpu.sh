#!/bin/sh
# Measure what docs/performance-gpu.md shows on a machine with a GPU, in some twenty minutes.
#
#   sh benchmarks/gpu.sh              all of it; needs `python -m data.prepare default-model`, and spec_bench
#   sh benchmarks/gpu.sh steps        what needs no checkpoint: step times of random weights
#   sh benchmarks/gpu.sh answers      what needs one: its step times, its answers, the methods' speeds
#   sh benchmarks/gpu.sh long         the methods behind long prompts; needs govreport_2k, _4k, _8k, for SECOND _16k
#   sh benchmarks/gpu.sh sampling     samples, and sixteen of one prompt; needs spec_bench, math500, aime25
#   sh benchmarks/gpu.sh vllm         servers of vLLM; needs spec_bench and humaneval
#   sh benchmarks/gpu.sh page         docs/performance-gpu.md from the figures of all
#
# What is measured already is kept. Set any of these in the environment:
#   MACHINE     names the traces and the folder of figures                 (default: gpu)
#   FIGURES     folder of figures                          (default: benchmarks/results/MACHINE)
#   MODEL_PATH  checkpoint or GGUF file
#                 (default: checkpoints/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf)
#   CHECKPOINT  of the same model, for vLLM            (default: checkpoints/smollm2-135m-instruct)
#   SECOND      GGUF file of a second model: its step times, and its long prompts
#   VLLM        python of an environment with vLLM; without it, nothing is measured in vLLM
#   SPARSER     ask only every so many-th of the questions, to try this out         (default: 1)
#   PYTHON      interpreter, with the extras `plots` and `suffix` installed     (default: python)
set -eu

part=${1-all}
case "$part" in
    all | steps | answers | long | sampling | vllm | page) ;;
    *)
        echo "gpu.sh: unknown part $part; give steps, answers, long, sampling, vllm, page or nothing" >&2
        exit 2
        ;;
esac
cd "$(dirname "$0")/.."
MACHINE=${MACHINE:-gpu}
MODEL_PATH=${MODEL_PATH:-checkpoints/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf}
CHECKPOINT=${CHECKPOINT:-checkpoints/smollm2-135m-instruct}
SECOND=${SECOND-}
VLLM=${VLLM-}
SPARSER=${SPARSER:-1}
model=$MODEL_PATH
FIGURES=${FIGURES:-benchmarks/results/$MACHINE}
SIZES="--device cuda --context 256 1024 4096 --nodes 2 4 8 16 24 32 48 64 96 128 --rounds 5"
fixed=vanilla,pld,suffix,recycling,logitspec,racer,calibrated # draft the same on every machine

. benchmarks/functions.sh

steps() {
    for shape in llama-7b qwen2.5-0.5b; do
        measure "step_cost-$shape" step_cost --random-weights $shape --dtype float16 $SIZES
    done
}

answers() {
    measure step_cost-default step_cost --model-path "$MODEL_PATH" --dtype float16 $SIZES
    ask cpu spec_bench 40 $fixed --device cpu --dtype float32 --warmup 0
    set --
    for dtype in float32 float16 bfloat16; do
        ask $dtype spec_bench 40 $fixed,calibrated@auto --device cuda --dtype $dtype --warmup 1
        # shellcheck disable=SC2046
        [ -e "$FIGURES/methods-$dtype.json" ] ||
            python -m evaluation.tables $(traces $dtype spec_bench $fixed,calibrated@auto) --first-turns \
                --json "$FIGURES/methods-$dtype.json"
        # shellcheck disable=SC2046
        set -- "$@" $(traces $dtype spec_bench $fixed)
    done
    # shellcheck disable=SC2046
    measure agreement agreement "$@" --reference $(traces cpu spec_bench $fixed)
}

long() {
    measure contexts-default contexts --model-path "$MODEL_PATH" --device cuda --dtype float16 \
        --questions $((SPARSER < 5 ? 5 / SPARSER : 1))
    if [ -n "$SECOND" ]; then
        measure step_cost-second step_cost --model-path "$SECOND" --dtype float16 $SIZES
        measure contexts-second contexts --model-path "$SECOND" --device cuda --dtype float16 \
            --benches govreport_4k govreport_8k govreport_16k --questions $((SPARSER < 3 ? 3 / SPARSER : 1))
    fi
}

sampling() {
    measure sampling sampling --model-path "$MODEL_PATH" --device cuda --dtype float32 \
        --question-stride $((40 * SPARSER))
    for temperature in 0.7 1.0; do
        for each in "math500 25" "aime25 1"; do
            bench=${each% *} methods=calibrated
            ask "samples-$temperature" "$bench" "${each#* }" $methods --device cuda --dtype float32 \
                --question-end $((20 * ${each#* })) --temperature $temperature --num-choices 16 --max-new-tokens 256
            # shellcheck disable=SC2046
            [ -e "$FIGURES/samples-$bench-$temperature.json" ] ||
                python -m evaluation.tables $(traces "samples-$temperature" "$bench" $methods) \
                    --json "$FIGURES/samples-$bench-$temperature.json"
        done
    done
}

vllm() {
    [ -n "$VLLM" ] || return 0
    for dtype in float32 float16; do
        measure "vllm-$dtype" in_vllm --vllm-python "$VLLM" --model-path "$CHECKPOINT" --device cuda --dtype $dtype \
            --prompts 16 32 64 96 --rounds $((SPARSER < 3 ? 2 : 1))
    done
}

page() {
    python -m benchmarks.report "$FIGURES" --output docs/performance-gpu.md --notes docs/performance-gpu-notes.md \
        --title "Performance on a GPU"
}

mkdir -p "$FIGURES"
case "$part" in all | steps) steps ;; esac
case "$part" in all | answers) answers ;; esac
case "$part" in all | long) long ;; esac
case "$part" in all | sampling) sampling ;; esac
case "$part" in all | vllm) vllm ;; esac
case "$part" in all | page) page ;; esac
