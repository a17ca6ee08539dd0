#!/usr/bin/env bash
# Runs the whole test suite, real ComfyUI and real browser included, setting up whatever is missing.
#
#   ./test.sh [PYTEST ARGUMENTS]    for example: ./test.sh tests/ciri -k crop
#   ./test.sh --ci                  also checks style and types
set -euo pipefail
cd "$(dirname "$0")"
. scripts/find_python.sh
started=$SECONDS
MOST_WORKERS=4 # each holds networks of its own
"$PYTHON" -m scripts.environment test

if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "[setup] installing chromium for the browser tests"
        if ! said=$({ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; } 2>&1); then
            echo "$said" >&2
            echo "[setup] chromium could not be installed: the browser tests will be skipped" >&2
        fi
    else
        echo "[setup] no chromium found: the browser tests will be skipped (sudo apt-get install chromium)" >&2
    fi
fi

failed=()
step() { echo "== $*"; ".venv/bin/python" -m "$@" || failed+=("$1 $2"); }
if [ "${1:-}" = --ci ]; then
    shift
    step ruff check .
    step ruff format --check .
    step mypy ciri
fi
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
if [ $# = 0 ]; then
    # most tests are too small for threads: a process a core does more (what belongs together, tests/conftest.py says)
    workers=$(getconf _NPROCESSORS_ONLN)
    workers=$((workers > MOST_WORKERS ? MOST_WORKERS : workers))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    set -- --numprocesses "$workers" --dist loadgroup
fi
step pytest -rs "$@"
echo "== total $((SECONDS - started)) s"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
