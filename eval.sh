#!/bin/sh
# Reproduce the report: baseline, LogitSpec, speedup and accept length.
#
#   sh eval.sh            everything; installs into .venv and prepares the default model if absent
#   sh eval.sh --setup    environment and default model only
#
# Set any of these in the environment:
#   MODEL_PATH        checkpoint directory or hub id       (default: the default model, prepared here)
#   MODEL_NAME        name in the answer files             (default: the last part of MODEL_PATH)
#   BENCH             data/BENCH/question.jsonl            (default: quick)
#   DTYPE             auto, float16, bfloat16, float32, float64                 (default: auto)
#   TEMP              temperature                                               (default: 0.0)
#   MAX_NEW_TOKENS    per turn, less where the model has no room
#                                                 (default: 128 for quick, 1024 otherwise)
#   WARMUP            unmeasured runs before each method   (default: 1 for quick, 3 otherwise)
#   MAX_NGRAM_SIZE, NUM_PRED_TOKENS, DRAFT_TREE_CAPACITY   LogitSpec's         (3, 20, 64)
#   OVERWRITE         1: measure again what the answer files already hold
#   GPU_DEVICES       GPUs to use, as in CUDA_VISIBLE_DEVICES; the model is spread over them
#                                                                               (default: the first)
#   PYTHON            interpreter that creates .venv                            (default: python3)
set -eu

case "${1-}" in
    "" | --setup) ;;
    -h | --help)
        sed -n '2,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0"
        exit 0
        ;;
    *)
        echo "eval.sh: unknown argument $1; it takes --setup, --help or nothing" >&2
        exit 2
        ;;
esac

case "${MODEL_PATH-}" in
    "" | /*) ;;
    *) if [ -e "$MODEL_PATH" ]; then MODEL_PATH=$PWD/$MODEL_PATH; fi ;; # else a hub id
esac
cd "$(dirname "$0")"
. ./env.sh

BENCH=${BENCH:-quick}
DTYPE=${DTYPE:-auto}
TEMP=${TEMP:-0.0}
if [ "$BENCH" = quick ]; then
    MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-128}
    WARMUP=${WARMUP:-1}
fi
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-1024}
WARMUP=${WARMUP:-3}
N=${MAX_NGRAM_SIZE:-3}
T=${NUM_PRED_TOKENS:-20}
C=${DRAFT_TREE_CAPACITY:-64}
GPUS=1
if [ -n "${GPU_DEVICES-}" ]; then
    export CUDA_VISIBLE_DEVICES="$GPU_DEVICES"
    GPUS=$(echo "$GPU_DEVICES" | tr ',' '\n' | grep -c .)
fi

use_environment run -r requirements.txt
if [ -z "${MODEL_PATH-}" ] || [ "${1-}" = --setup ]; then
    default_model=$(python -m data.prepare default-model)
    MODEL_PATH=${MODEL_PATH:-$default_model}
fi
if [ "${1-}" = --setup ]; then
    echo "ready: .venv and $default_model"
    exit 0
fi
case "$BENCH" in # any other is the user's own, which must be there
    spec_bench | mt_bench | humaneval | gsm8k | cnndm)
        python -m data.prepare "$BENCH" >/dev/null
        ;;
esac

MODEL_NAME=$(basename "${MODEL_NAME:-$MODEL_PATH}" | tr -c '[:alnum:]._\n-' '_')
answers="data/$BENCH/model_answer"
run="$DTYPE-temp-$TEMP-new-$MAX_NEW_TOKENS"
baseline="$MODEL_NAME-vanilla-$run"
logitspec="$MODEL_NAME-logitspec-$N-$T-$C-$run"

set -- --model-path "$MODEL_PATH" --bench-name "$BENCH" --dtype "$DTYPE" --temperature "$TEMP" \
    --max-new-tokens "$MAX_NEW_TOKENS" --cap-new-tokens --warmup "$WARMUP" \
    --num-gpus-per-model "$GPUS" --num-gpus-total "$GPUS"
if [ "${OVERWRITE-}" = 1 ]; then
    set -- "$@" --overwrite
fi
python -m evaluation.inference_baseline "$@" --model-id "$baseline"
python -m evaluation.inference_logitspec "$@" --model-id "$logitspec" \
    --max_ngram_size "$N" --num_pred_tokens "$T" --draft_tree_capacity "$C"
python evaluation/speed.py --file-path "$answers/$logitspec.jsonl" \
    --base-path "$answers/$baseline.jsonl" --json "$answers/$logitspec.speed.json"
