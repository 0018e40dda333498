#!/usr/bin/env bash
# Every check and every test, one line of verdict each; what a failing step said is shown below its line.
# `make test` calls it with the project's environment first on PATH.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# One thread a process: the notebooks run two at a time, and TensorFlow would otherwise take every core for each.
export OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3
export PYTHONWARNINGS=ignore::FutureWarning

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=0

step() {  # step NAME COMMAND...
    local name=$1 start=$SECONDS verdict=ok
    shift
    printf '%-52s' "$name"
    "$@" >"$logs/log" 2>&1 </dev/null || { verdict=FAILED; failed=$((failed + 1)); }
    printf '%-6s %4d s\n' "$verdict" $((SECONDS - start))
    if [ "$verdict" = FAILED ]; then tail -n 60 "$logs/log" | sed 's/^/    /'; fi
}

step "modules are what the notebooks export"      python tests/in_step.py modules
step "notebooks are clean"                        python tests/in_step.py clean
step "README is nbs/index.ipynb"                  python tests/in_step.py readme
step "modules import from lower layers only"       lint-imports
step "ruff"                                       ruff check ptycho_nb tests benchmarks docs setup.py
step "library notebooks run (nbdev_test)"         nbdev_test --n_workers 2
step "study notebooks run, quick profile"         nbdev_test --path studies_nbs --n_workers 2
step "every benchmark runs, quick sizes"          python benchmarks/bench.py --quick --out "$logs/bench"
step "documentation builds, warnings are errors"  python docs/build.py --out "$logs/docs"
step "pytest"                                   python -m pytest -n 2 --dist loadfile

if [ "$failed" -gt 0 ]; then
    echo "$failed of 10 steps failed after $SECONDS s"
    exit 1
fi
echo "all 10 steps passed in $SECONDS s"
