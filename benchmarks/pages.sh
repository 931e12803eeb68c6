#!/bin/sh
# Measure what docs/performance.md and docs/results.md show, and write the two pages.
#
#   sh benchmarks/pages.sh                both pages
#   sh benchmarks/pages.sh performance    one of them
#   sh benchmarks/pages.sh results        the other, with SECOND docs/results-second.md, too; both need
#                                         `python -m data.prepare all`
#   sh benchmarks/pages.sh second         docs/results-second.md alone
#   sh benchmarks/pages.sh analyses       docs/analyses.md instead, and with SECOND docs/analyses-second.md
#   sh benchmarks/pages.sh vllm           docs/performance-vllm.md instead; needs VLLM, spec_bench and humaneval
#
# What is measured already is kept: the traces in data/BENCH/model_answer/MACHINE-*, the other
# figures in FIGURES, those of vLLM in FIGURES-vllm, and rows and recordings in recordings/MACHINE-*.
# Move them away to measure again.
#
# Every figure of docs/performance.md, and the first of docs/performance-vllm.md, is measured on the
# machine's instruction set and, where that is a higher one, with LOGITSPEC_ISA=avx2, which is what
# most CPUs have.
#
# Set any of these in the environment:
#   MACHINE     names the traces and the folder of figures           (default: amd-epyc-2-cores)
#   FIGURES     folder of figures                          (default: benchmarks/results/MACHINE)
#   MODEL_PATH  checkpoint                       (default: checkpoints/smollm2-135m-instruct)
#   GGUF        the same model as a GGUF file
#                               (default: MODEL_PATH/SmolLM2-135M-Instruct.Q4_1.gguf)
#   SECOND      GGUF file of a second model, of any family; skipped without one: the figures here
#               are of Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF, Q4_K_M                (default: none)
#   VLLM        interpreter of an environment with vLLM and arctic-inference         (default: none)
#   SECOND_CHECKPOINT   checkpoint of the second model, for vLLM; skipped without one (default: none)
#   STORE       datastore of the method rest, made of Python's library      (default: data/python.store)
#   DOCS        folder that the pages are written into                          (default: docs)
#   SPARSER     ask only every so many-th of the questions, to try this out         (default: 1)
#   PYTHON      interpreter, with the extras `plots`, `score`, `suffix`, `llama` and
#               `datastore` installed                                      (default: python)
set -eu

page=${1-both}
case "$page" in
    both | performance | results | second | analyses | vllm) ;;
    *)
        echo "pages.sh: unknown page $page; give performance, results, second, analyses, vllm or nothing" >&2
        exit 2
        ;;
esac
if [ "$page" = second ] && [ -z "${SECOND-}" ]; then
    echo "pages.sh: no second model to ask; give its GGUF file as SECOND" >&2
    exit 2
fi
if [ "$page" = vllm ] && [ -z "${VLLM-}" ]; then
    echo "pages.sh: no vLLM to measure in; give the python of its environment as VLLM" >&2
    exit 2
fi
cd "$(dirname "$0")/.."
MACHINE=${MACHINE:-amd-epyc-2-cores}
MODEL_PATH=${MODEL_PATH:-checkpoints/smollm2-135m-instruct}
GGUF=${GGUF:-$MODEL_PATH/SmolLM2-135M-Instruct.Q4_1.gguf}
SECOND=${SECOND-}
VLLM=${VLLM-}
SECOND_CHECKPOINT=${SECOND_CHECKPOINT-}
STORE=${STORE:-data/python.store}
DOCS=${DOCS:-docs}
SPARSER=${SPARSER:-1}
FIGURES=${FIGURES:-benchmarks/results/$MACHINE}
model=$MODEL_PATH # what is asked
seven=baseline,hf_pld,vanilla,pld,suffix,recycling,logitspec

. benchmarks/functions.sh

beside_generate() { # SUFFIX DTYPE STRIDE: all methods beside transformers' generate()
    methods=$seven,racer,calibrated,calibrated@auto
    ask "performance-$2$1" spec_bench "$3" $methods --dtype "$2" --warmup 3
    # shellcheck disable=SC2046
    python -m evaluation.tables $(traces "performance-$2$1" spec_bench $methods) \
        --first-turns --json "$FIGURES/methods-$2$1.json"
}

samples() { # NAME BENCH STRIDE END TEMPERATURE ANSWERS METHODS: so many answers to each question
    model=$GGUF
    ask "$1-$5" "$2" "$3" "$7" --dtype float32 --temperature "$5" --num-choices "$6" --max-new-tokens 256 \
        --question-end "$4"
    model=$MODEL_PATH
    # shellcheck disable=SC2046
    python -m evaluation.tables $(traces "$1-$5" "$2" "$7") --json "$FIGURES/$1-$2-$5.json"
}

of_gguf() { # NAME FILE SUFFIX: what is measured of every model
    measure "llama_cpp-$1-spec_bench$3" llama_cpp --model-path "$2" --question-stride $((40 * SPARSER))
    measure "llama_cpp-$1-humaneval$3" llama_cpp --model-path "$2" --bench-name humaneval \
        --question-stride $((17 * SPARSER))
    for temperature in 0.0 1.0; do
        name=slowest-$1-$temperature$3
        measure "$name" slowest --model-path "$2" --model-id "$MACHINE-$name" \
            --answer-dir data/spec_bench/model_answer --bench-name spec_bench \
            --question-stride $((12 * SPARSER)) --max-new-tokens 128 --cap-new-tokens \
            --temperature $temperature
    done
    measure "first_token-$1$3" first_token --model-path "$2"
    measure "step_cost-$1$3" step_cost --model-path "$2" --dtype float32 --cpu-kernels native packed plain \
        --context 256 --rounds 9 --prompt 256 1024
}

on_instruction_set() { # SUFFIX
    of_gguf default "$GGUF" "$1"
    if [ -n "$SECOND" ]; then
        of_gguf second "$SECOND" "$1"
    fi
    measure "neighbour$1" neighbour --model-path "$MODEL_PATH" --dtype float32
    measure "step_cost$1" step_cost --model-path "$MODEL_PATH" --dtype float32 --cpu-kernels native packed plain \
        --context 256 1024 4096 --rounds 9 --prompt 256 1024
    beside_generate "$1" float32 96
}

has_lower_set() { # whether there is an instruction set below the machine's, and none is forced
    grep -qs avx512f /proc/cpuinfo && [ -z "${LOGITSPEC_ISA-}" ]
}

performance() {
    if [ -z "$SECOND" ]; then
        echo "pages.sh: no second model is measured; SECOND names its GGUF file" >&2
    fi
    on_instruction_set ""
    measure step_cost-bfloat16 step_cost --model-path "$MODEL_PATH" --dtype bfloat16 \
        --cpu-kernels native packed plain --context 256 1024 4096 --rounds 9 --prompt 256 1024
    beside_generate "" bfloat16 48
    measure sampling sampling --model-path "$GGUF" --question-stride $((40 * SPARSER))
    measure sampling-others sampling --model-path "$GGUF" --question-stride $((60 * SPARSER)) --seeds 1 --others \
        --only "temperature 0.7" "temperature 1"
    measure sampling-rows sampling --model-path "$GGUF" --question-stride $((40 * SPARSER)) --rows \
        --only "temperature 0.7" "temperature 1" --methods calibrated "calibrated, rows"
    measure sampling-rows-auto sampling --model-path "$GGUF" --question-stride $((40 * SPARSER)) --rows \
        --only "temperature 0.7" "temperature 1" \
        --methods "calibrated@auto, blind" calibrated@auto "calibrated@auto, rows"
    measure contexts-default contexts --model-path "$GGUF" --questions $((SPARSER < 5 ? 5 / SPARSER : 1))
    fastest=vanilla,suffix,calibrated@auto
    measure contexts-more contexts --model-path "$GGUF" --questions $((SPARSER < 10 ? 10 / SPARSER : 1)) \
        --methods $fastest
    if [ -n "$SECOND" ]; then
        measure contexts-more-second contexts --model-path "$SECOND" --benches govreport_8k govreport_16k \
            --questions $((SPARSER < 3 ? 3 / SPARSER : 1)) --methods $fastest
        measure contexts-second contexts --model-path "$SECOND" --benches govreport_8k govreport_16k --questions 1 \
            --methods vanilla,suffix,calibrated,calibrated@16,calibrated@auto
    fi
    measure warm warm --model-path "$GGUF" --questions $((SPARSER < 5 ? 20 / SPARSER : 4))
    sampling=vanilla,suffix,recycling,calibrated,calibrated@auto
    for each in "0.7 8" "1.0 4"; do
        temperature=${each% *} answers=${each#* }
        samples samples math500 167 500 "$temperature" 16 $sampling
        samples samples aime25 10 30 "$temperature" 16 $sampling
        samples samples-of-more math500 25 500 "$temperature" "$answers" vanilla,suffix,calibrated
        samples samples-of-more aime25 1 20 "$temperature" "$answers" vanilla,suffix,calibrated
    done
    measure scale scale --model-path "$MODEL_PATH" --rounds 7
    if has_lower_set; then
        export LOGITSPEC_ISA=avx2
        on_instruction_set -avx2
        unset LOGITSPEC_ISA
    fi
    python -m benchmarks.report "$FIGURES" --output "$DOCS/performance.md" --notes docs/performance-notes.md
}

results() {
    model=$GGUF
    if [ ! -e "$STORE" ]; then
        python -m data.datastore "$(python -c 'import os; print(os.path.dirname(os.__file__))')"/*.py \
            --output "$STORE" --model-path "$model"
    fi
    all=baseline,hf_pld,vanilla,pld,suffix,sam,lookahead,rest,recycling,sam_recycling
    all=$all,logitspec,logitspec@auto,racer,racer@16,calibrated,calibrated@16,calibrated@auto
    ask results spec_bench 12 $all --dtype float32 --datastore "$STORE"
    main=baseline,hf_pld,vanilla,pld,suffix,sam,lookahead,rest,recycling,sam_recycling
    main=$main,logitspec,racer,calibrated,calibrated@16,calibrated@auto
    set --
    # shellcheck disable=SC2046
    for each in "humaneval 8 160" "gsm8k 15 300" "math500 25 500" "aime25 1 20" "mgsm_zh 12 240" "govreport_2k 1 20"; do
        read -r bench stride end <<-END
			$each
		END
        ask results "$bench" "$stride" $main --dtype float32 --datastore "$STORE" --question-end "$end"
        set -- "$@" $(traces results "$bench" $main)
    done
    others=$*
    set --
    for temperature in 0.0 0.3 0.7 1.0; do
        methods=vanilla,pld,suffix,recycling,logitspec,racer,calibrated,calibrated@auto
        ask temperature-$temperature spec_bench 120 $methods --dtype float32 --temperature $temperature
        # shellcheck disable=SC2046
        set -- "$@" $(traces temperature-$temperature spec_bench $methods)
    done
    # shellcheck disable=SC2046,SC2086
    python -m evaluation.report $(traces results spec_bench $all) $others \
        --temperatures "$@" --published --output "$DOCS/results.md" --notes docs/results-notes.md
}

results_of_second() { # fewer questions are asked of it; the others are recorded once, and replayed
    model=$SECOND
    live=vanilla,pld,suffix,recycling,logitspec,racer,calibrated,calibrated@16,calibrated@auto
    ask second-results spec_bench 40 $live --dtype float32
    for bench in spec_bench humaneval; do
        file=$FIGURES/replayed-second/$bench.csv
        if [ ! -e "$file" ]; then
            stride=12 end=480 # 40 questions of Spec-Bench, 20 of HumanEval
            [ $bench = spec_bench ] || stride=8 end=160
            record "second-$bench" "$SECOND" $stride 128 --bench-name $bench --question-end $end
            mkdir -p "$FIGURES/replayed-second"
            python -m evaluation.replay --recording "recordings/$MACHINE-second-$bench" \
                --methods $live,sam,sam_recycling --csv "$file"
        fi
        set -- "$@" "$file"
    done
    # shellcheck disable=SC2046
    python -m evaluation.report $(traces second-results spec_bench $live) --replayed "$@" \
        --output "$DOCS/results-second.md"
}

record() { # NAME FILE STRIDE TOKENS [FLAG...]: a recording, gone on with, as recordings/MACHINE-NAME
    name=$1 file_of=$2 stride=$3 tokens=$4
    shift 4
    python -m evaluation.record --model-path "$file_of" --question-stride $((stride * SPARSER)) \
        --max-new-tokens "$tokens" --cap-new-tokens --top-k 128 --output "recordings/$MACHINE-$name" "$@"
}

analyses() {
    methods=vanilla,pld,suffix,recycling,logitspec,logitspec@16,racer,calibrated,calibrated@16,calibrated@auto
    record first "$GGUF" 12 128
    model=$GGUF
    ask analyses spec_bench 40 $methods
    # shellcheck disable=SC2046
    python -m evaluation.analyses --recording "recordings/$MACHINE-first" \
        --traces $(traces analyses spec_bench $methods) --output "$DOCS/analyses.md" --notes docs/analyses-notes.md
    if [ -n "$SECOND" ]; then
        record second "$SECOND" 40 96
        python -m evaluation.analyses --recording "recordings/$MACHINE-second" --output "$DOCS/analyses-second.md"
    fi
}

of_vllm() { # NAME CHECKPOINT [FLAG...]
    name=$1 checkpoint=$2
    shift 2
    measure "vllm-$name" in_vllm --vllm-python "$VLLM" --model-path "$checkpoint" \
        --rounds $((SPARSER < 3 ? 2 : 1)) "$@"
}

vllm() { # several servers at a time, as many as memory holds: six of the default model fill 23 GiB
    rows=recordings/$MACHINE-rows.npz
    if [ ! -e "$rows" ]; then
        mkdir -p recordings
        python -m evaluation.vocabulary --model-path "$MODEL_PATH" --output "$rows"
    fi
    of_vllm default "$MODEL_PATH" --prompts 12 16 24 48
    of_vllm warm "$MODEL_PATH" --concurrency 1 4 --prompts 12 24 --evidence "$rows" \
        --methods "none,ngram tuned,suffix,calibrated,calibrated warm"
    if [ -n "$SECOND_CHECKPOINT" ]; then
        of_vllm second "$SECOND_CHECKPOINT" --concurrency 1 4 --prompts 4 8 --methods "none,suffix,calibrated"
        of_vllm second-ngram "$SECOND_CHECKPOINT" --concurrency 1 4 --prompts 6 12 \
            --methods "none,ngram tuned,calibrated"
    fi
    measure proposing proposing
    if has_lower_set; then
        export LOGITSPEC_ISA=avx2
        of_vllm default-avx2 "$MODEL_PATH" --prompts 16 16 24 48 --methods "none,ngram,ngram tuned,suffix,calibrated"
        unset LOGITSPEC_ISA
    fi
    python -m benchmarks.report "$FIGURES" --output "$DOCS/performance-vllm.md" --title "Performance in vLLM"
}

[ "$page" != vllm ] || FIGURES=$FIGURES-vllm
mkdir -p "$FIGURES" "$DOCS"
case "$page" in both | performance) performance ;; esac
case "$page" in both | results) results ;; esac
case "$page" in both | results | second) [ -z "$SECOND" ] || results_of_second ;; esac
case "$page" in analyses | vllm) "$page" ;; esac
