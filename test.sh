#!/bin/sh
# Lint, types and tests, in .venv: sh test.sh [fast|default|full] [pytest's arguments]
#
#   sh test.sh fast       without the real model and without Ray
#   sh test.sh            all but the slow tests: ten to twenty minutes on two cores
#   sh test.sh full       all tests, every reference trace and quick question to its end, and in vLLM,
#                         which is installed into .venv-vllm; with line coverage: an hour
#   sh test.sh -k pool    the tests that pytest selects with these arguments
#
# BENCH_FROM=DIR takes the published question sets from DIR/NAME/question.jsonl and DIR/raw. The tests
# that need these sets run with it, or after `python -m data.prepare spec_bench`; otherwise they are skipped.
set -eu
if [ -n "${BENCH_FROM-}" ]; then
    BENCH_FROM=$(cd "$BENCH_FROM" && pwd)
fi
cd "$(dirname "$0")"
. ./env.sh

tier=default
case "${1-}" in
    -h | --help)
        sed -n '2,/^set -eu/{s/^# \{0,1\}//p;}' test.sh
        exit
        ;;
    fast | default | full)
        tier=$1
        shift
        ;;
esac

use_environment dev -r requirements.txt -e ".[dev,ray,plots,score,datastore]"
try_environment suffix -e ".[suffix]" ||
    echo "test.sh: the package of the method suffix could not be built; its tests are skipped" >&2
if [ "$tier" = full ] && [ -z "${LOGITSPEC_VLLM-}" ]; then
    if vllm_environment; then
        export LOGITSPEC_VLLM="$PWD/.venv-vllm/bin/python"
    else
        echo "test.sh: vLLM could not be installed; its tests are skipped" >&2
    fi
fi
python -m data.prepare default-model >/dev/null
if [ -n "${BENCH_FROM-}" ]; then
    python -m data.prepare all --from "$BENCH_FROM" >/dev/null
fi
ruff format --check .
ruff check .
mypy

# Two processes of one thread are faster than one of two threads, because most of a test is Python.
# The tests of a file run in one process: what its fixtures measure is measured once.
parallel="-n 2 --dist loadfile"
coverage="--cov --cov-report=term" # a quarter more time
if [ "$#" -eq 0 ]; then coverage="$coverage --cov-fail-under=90"; fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# shellcheck disable=SC2086
case "$tier" in
    fast) exec python -m pytest $parallel -m "not slow and not real and not workers" "$@" ;;
    default) exec python -m pytest $parallel -m "not slow" "$@" ;;
    full) FULL=1 exec python -m pytest $parallel $coverage "$@" ;;
esac
