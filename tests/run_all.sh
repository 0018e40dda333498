#!/usr/bin/env bash
# Every check and every test, one line of verdict each; what a failing step said is shown below its line.
# `make test` calls it with the project's environment first on PATH. With `--long`, which `make test-long` gives, it runs
# what takes too long for every change instead.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# One thread a process: two notebooks or three tests run at a time, and TensorFlow would otherwise take every core for each.
export OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3
export PYTHONWARNINGS=ignore::FutureWarning
unset PYTHONDONTWRITEBYTECODE  # some hundred processes import the package: the first compiles it for all

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=0 steps=0

step() {  # step NAME COMMAND...
    local name=$1 start=$SECONDS verdict=ok
    shift
    steps=$((steps + 1))
    printf '%-52s' "$name"
    "$@" >"$logs/log" 2>&1 </dev/null || { verdict=FAILED; failed=$((failed + 1)); }
    printf '%-6s %4d s\n' "$verdict" $((SECONDS - start))
    if [ "$verdict" = FAILED ]; then tail -n 60 "$logs/log" | sed 's/^/    /'; fi
}

if [ "${1:-}" = --long ]; then
    step "study notebooks run with their defaults"        python tests/run_notebooks.py studies_nbs
    step "heart and pretrained network on JAX, every case" \
        env KERAS_BACKEND=jax python -m pytest -n 2 tests/test_heart.py tests/test_pretrained.py
    step "tests marked as long"                           python -m pytest -n 2 -m long
else
    step "modules are what the notebooks export"          python tests/in_step.py modules
    step "notebooks are clean"                            python tests/in_step.py clean
    step "README is nbs/index.ipynb"                      python tests/in_step.py readme
    step "modules import from lower layers only"          lint-imports
    step "ruff"                                           ruff check ptycho_nb tests benchmarks docs setup.py
    step "library notebooks run"                          python tests/run_notebooks.py
    # Among the tests: the study notebooks and the documentation, warnings as errors. A third of the time a worker waits for
    # a process or a browser: three of them keep two cores busy.
    step "pytest"  python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder
fi

if [ "$failed" -gt 0 ]; then
    echo "$failed of $steps steps failed after $SECONDS s"
    exit 1
fi
echo "all $steps steps passed in $SECONDS s"
