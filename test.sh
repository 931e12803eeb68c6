#!/bin/sh
# Lint, types and tests, in .venv. Arguments go to pytest: sh test.sh -k pool
#
# BENCH_FROM=DIR takes the published question sets from DIR/NAME/question.jsonl, so that the tests
# that need them run; without it they run when `python -m data.prepare spec_bench` has been run.
set -eu
if [ -n "${BENCH_FROM-}" ]; then
    BENCH_FROM=$(cd "$BENCH_FROM" && pwd)
fi
cd "$(dirname "$0")"
. ./env.sh

use_environment dev -r requirements.txt -e ".[dev,ray,plots]"
try_environment suffix -e ".[suffix]" ||
    echo "test.sh: the package of the method suffix could not be built; its tests are skipped" >&2
python -m data.prepare default-model >/dev/null
if [ -n "${BENCH_FROM-}" ]; then
    python -m data.prepare all --from "$BENCH_FROM" >/dev/null
fi
ruff format --check .
ruff check .
mypy
python -m pytest "$@"
