#!/bin/sh
# Reproduce the report: baseline, LogitSpec, speedup and accept length.
#
#   sh eval.sh            everything; installs into .venv and prepares the default model if absent
#   sh eval.sh --setup    environment and default model only
#
# Set any of these in the environment:
#   MODEL_PATH        checkpoint directory or hub id        (default: the default model, prepared here)
#   MODEL_NAME        name in the answer files              (default: the last part of MODEL_PATH)
#   BENCH             data/BENCH/question.jsonl             (default: quick)
#   DTYPE             auto, float16, bfloat16, float32, float64                  (default: auto)
#   TEMP              temperature                                                (default: 0.0)
#   MAX_NEW_TOKENS    per turn                          (default: 128 for quick, 1024 otherwise)
#   WARMUP            unmeasured runs before each method    (default: 1 for quick, 3 otherwise)
#   MAX_NGRAM_SIZE, NUM_PRED_TOKENS, DRAFT_TREE_CAPACITY    LogitSpec's           (3, 20, 64)
#   OVERWRITE         set to 1: measure again what the answer files already hold
#   GPU_DEVICES       the GPUs to use, as in CUDA_VISIBLE_DEVICES               (default: all)
#   PYTHON            interpreter that creates .venv                        (default: python3)
set -eu
cd "$(dirname "$0")"
. ./env.sh

case "${1-}" in
    "" | --setup) ;;
    -h | --help)
        sed -n '2,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' eval.sh
        exit 0
        ;;
    *)
        echo "eval.sh: unknown argument $1; it takes --setup, --help or nothing" >&2
        exit 2
        ;;
esac

BENCH=${BENCH:-quick}
DTYPE=${DTYPE:-auto}
TEMP=${TEMP:-0.0}
if [ "$BENCH" = quick ]; then
    MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-128}
    WARMUP=${WARMUP:-1}
fi
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-1024}
WARMUP=${WARMUP:-3}
if [ -n "${GPU_DEVICES-}" ]; then
    export CUDA_VISIBLE_DEVICES="$GPU_DEVICES"
fi

use_environment run -r requirements.txt
if [ -z "${MODEL_PATH-}" ] || [ "${1-}" = --setup ]; then
    default_model=$(python -m data.prepare default-model)
    MODEL_PATH=${MODEL_PATH:-$default_model}
fi
[ "${1-}" = --setup ] && exit 0

MODEL_NAME=${MODEL_NAME:-$(basename "$MODEL_PATH")}
if [ ! -f "data/$BENCH/question.jsonl" ]; then
    python -m data.prepare "$BENCH"
fi

answers="data/$BENCH/model_answer"
baseline="$MODEL_NAME-vanilla-$DTYPE-temp-$TEMP"
logitspec="$MODEL_NAME-logitspec-$DTYPE-temp-$TEMP"

set -- --model-path "$MODEL_PATH" --bench-name "$BENCH" --dtype "$DTYPE" --temperature "$TEMP" \
    --max-new-tokens "$MAX_NEW_TOKENS" --warmup "$WARMUP" ${OVERWRITE:+--overwrite}
python -m evaluation.inference_baseline "$@" --model-id "$baseline"
python -m evaluation.inference_logitspec "$@" --model-id "$logitspec" \
    --max_ngram_size "${MAX_NGRAM_SIZE:-3}" \
    --num_pred_tokens "${NUM_PRED_TOKENS:-20}" \
    --draft_tree_capacity "${DRAFT_TREE_CAPACITY:-64}"
python evaluation/speed.py --file-path "$answers/$logitspec.jsonl" \
    --base-path "$answers/$baseline.jsonl" --json "$answers/$logitspec.speed.json"
