#!/bin/sh
# Reproduce the tables: every method on the benchmarks, speedup and accept length.
#
#   sh eval.sh            everything; installs into .venv and prepares the default model if absent
#   sh eval.sh --setup    environment and default model only
#
# Set any of these in the environment:
#   MODEL_PATH        checkpoint directory, GGUF file or hub id
#                                              (default: the default model's GGUF file, prepared here)
#   MODEL_NAME        name in the answer files
#                                           (default: the last part of MODEL_PATH, without .gguf)
#   METHODS           what to compare with transformers' generate(), which always runs
#       (default: vanilla logitspec pld recycling racer calibrated calibrated@auto suffix)
#   BENCHES           data/BENCH/question.jsonl, one or several; published ones are fetched
#                                                                           (default: quick)
#   DTYPE             auto, float16, bfloat16, float32, float64                 (default: auto)
#   TEMP              temperature                                               (default: 0.0)
#   MAX_NEW_TOKENS    per turn; fewer where prompt and answer exceed the model's positions
#                                                 (default: 128 for quick, 1024 otherwise)
#   QUESTION_STRIDE   only every K-th question                      (default: 4 for quick, else 1)
#   WARMUP            unmeasured runs of each method first (default: 1 for quick, 3 otherwise)
#   MAX_NGRAM_SIZE, NUM_PRED_TOKENS, DRAFT_TREE_CAPACITY
#                     of every method that knows them      (default: each paper's own)
#   DATASTORE         file that the method rest drafts from (python -m data.datastore)
#   OVERWRITE         1: measure again the questions that the answer files already hold
#   STRICT            1: stop at a question that cannot be answered, instead of leaving it out
#   GPU_DEVICES       GPUs to use, as in CUDA_VISIBLE_DEVICES; the model is spread over them
#                                                                               (default: the first)
#   ALLOW_PICKLE      1: read weights that exist as pickles only (*.bin); these can run code
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
case "${DATASTORE-}" in
    "" | /*) ;;
    *) DATASTORE=$PWD/$DATASTORE ;;
esac
cd "$(dirname "$0")"
. ./env.sh

BENCHES=$(echo "${BENCHES:-${BENCH:-quick}}" | tr ',' ' ')
wanted=""
for method in $(echo "${METHODS-}" | tr ',' ' '); do
    if [ "$method" != baseline ]; then wanted="${wanted:+$wanted }$method"; fi
done
DTYPE=${DTYPE:-auto}
TEMP=${TEMP:-0.0}
GPUS=1
if [ -n "${GPU_DEVICES-}" ]; then
    export CUDA_VISIBLE_DEVICES="$GPU_DEVICES"
    GPUS=$(echo "$GPU_DEVICES" | tr ',' '\n' | grep -c .)
fi

use_environment run -r requirements.txt -e ".[plots,score]"
if [ -z "${METHODS-}" ]; then
    wanted="vanilla logitspec pld recycling racer calibrated calibrated@auto"
    if try_environment suffix -e ".[suffix]"; then
        wanted="$wanted suffix"
    else
        echo "eval.sh: continuing without the method suffix, whose package could not be built;" \
            "METHODS=suffix tries again" >&2
    fi
else
    case " $wanted " in *" suffix "* | *" suffix@"*) use_environment suffix -e ".[suffix]" ;; esac
fi
if [ -z "${MODEL_PATH-}" ] || [ "${1-}" = --setup ]; then
    default_model=$(python -m data.prepare default-model)
    default_weights=/SmolLM2-135M-Instruct.Q4_1.gguf # the faster; empty: dequantized to float32
    MODEL_PATH=${MODEL_PATH:-$default_model$default_weights}
fi
if [ "${1-}" = --setup ]; then
    echo "ready: .venv and $default_model"
    exit 0
fi

MODEL_NAME=$(basename "${MODEL_NAME:-$MODEL_PATH}" .gguf | tr -c '[:alnum:]._\n-' '_')
methods=$(echo "baseline $wanted" | tr -s ' ' ',')
traces=""
reports=""
status=0
for bench in $BENCHES; do
    case "$bench" in # any other is the user's own and must exist
        spec_bench | mt_bench | humaneval | gsm8k | cnndm | math500 | aime24 | aime25 | mgsm_zh | \
            racer_math | racer_aime | govreport_2k | govreport_4k | govreport_8k | govreport_16k | longbench)
            python -m data.prepare "$bench" >/dev/null
            ;;
        math500-plain | aime24-plain | aime25-plain | mgsm_zh-plain)
            python -m data.prepare "${bench%-plain}" --plain >/dev/null
            ;;
    esac
    if [ "$bench" = quick ]; then
        tokens=${MAX_NEW_TOKENS:-128} warmup=${WARMUP:-1} stride=${QUESTION_STRIDE:-4}
    else
        tokens=${MAX_NEW_TOKENS:-1024} warmup=${WARMUP:-3} stride=${QUESTION_STRIDE:-1}
    fi
    name="$MODEL_NAME-$DTYPE-temp-$TEMP-new-$tokens"
    set -- --model-path "$MODEL_PATH" --bench-name "$bench" --dtype "$DTYPE" --temperature "$TEMP" \
        --max-new-tokens "$tokens" --cap-new-tokens --warmup "$warmup" --question-stride "$stride" \
        --num-gpus-per-model "$GPUS" --num-gpus-total "$GPUS"
    if [ -n "${MAX_NGRAM_SIZE-}" ]; then
        set -- "$@" --max-ngram-size "$MAX_NGRAM_SIZE"
        name="$name-ngram-$MAX_NGRAM_SIZE"
    fi
    if [ -n "${NUM_PRED_TOKENS-}" ]; then
        set -- "$@" --num-pred-tokens "$NUM_PRED_TOKENS"
        name="$name-pred-$NUM_PRED_TOKENS"
    fi
    if [ -n "${DRAFT_TREE_CAPACITY-}" ]; then
        set -- "$@" --draft-tree-capacity "$DRAFT_TREE_CAPACITY"
        name="$name-capacity-$DRAFT_TREE_CAPACITY"
    fi
    if [ -n "${DATASTORE-}" ]; then set -- "$@" --datastore "$DATASTORE"; fi
    if [ "${OVERWRITE-}" = 1 ]; then set -- "$@" --overwrite; fi
    if [ "${STRICT-}" = 1 ]; then set -- "$@" --strict; fi
    if [ "${ALLOW_PICKLE-}" = 1 ]; then set -- "$@" --allow-pickle; fi
    python -m evaluation.run --methods "$methods" --model-id "$name" "$@" || {
        status=$?
        if [ "$status" -ne 3 ]; then exit "$status"; fi # 3: done, but some questions failed
    }

    answers="data/$bench/model_answer"
    reports="$reports $answers/$name"
    for method in baseline $wanted; do
        traces="$traces $answers/$name-$method.jsonl"
    done
done

# MODEL_NAME, METHODS and BENCHES contain no blanks, so these lists can be split at blanks.
for report in $reports; do
    set --
    for method in baseline $wanted; do
        set -- "$@" "$report-$method.jsonl"
    done
    python -m evaluation.tables "$@"
    python -m evaluation.report "$@" --output "$report.report.md"
done
if [ "$(echo "$reports" | wc -w)" -gt 1 ]; then
    # shellcheck disable=SC2086
    set -- --by-bench $traces
    python -m evaluation.tables "$@"
    python -m evaluation.tables "$@" --format markdown --output "${reports##* }.benches.md"
    echo "benchmarks side by side: ${reports##* }.benches.md"
fi
exit "$status"
