# What pages.sh and gpu.sh share; they set MACHINE, FIGURES, SPARSER, PYTHON and model, what is asked.
# shellcheck shell=sh

python() { command "${PYTHON:-python}" "$@"; }

ask() { # NAME BENCH STRIDE METHODS [FLAG...]: one run; its traces are data/BENCH/model_answer/MACHINE-NAME-*
    name=$1 bench=$2 stride=$3 methods=$4
    shift 4
    python -m evaluation.run --model-path "$model" --model-id "$MACHINE-$name" --bench-name "$bench" \
        --question-stride $((stride * SPARSER)) --methods "$methods" --max-new-tokens 128 --cap-new-tokens "$@" ||
        [ $? -eq 3 ] # 3: done but for questions that could not be answered
}

traces() { # NAME BENCH METHODS: the files of such a run, in the order of the methods
    echo "$3" | tr ',' '\n' | sed "s|.*|data/$2/model_answer/$MACHINE-$1-&.jsonl|"
}

measure() { # NAME BENCHMARK [FLAG...]: a benchmark's figures as FIGURES/NAME.json, unless they are there
    file=$FIGURES/$1.json name=$2
    shift 2
    if [ ! -e "$file" ]; then
        [ "$name" = llama_cpp ] || rm -f "$file.part" # llama_cpp goes on with its own
        python -m "benchmarks.$name" "$@" --json "$file.part"
        [ ! -e "$file.part" ] || mv "$file.part" "$file"
    fi
}
