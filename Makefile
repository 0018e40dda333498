# Everything that is typed in this project. `make help` lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
# What `make venv` installs; EXTRAS=dev,baselines adds pty-chi and PyTorch, for LSQML and its tests.
EXTRAS ?= dev
# Of the studies' convolutions. bfloat16 is faster where the processor computes with it; every arm of a study has the same.
PRECISION ?= float32
# Mutated files for each reader.
N ?= 10000
export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.PHONY: help venv dose dose-full star study-dose study-dose-curve study-overlap photon-grid photon-grid-full pretrained test test-long fuzz bench bench-quick publish bench-workers bench-rivals docs gallery export readme clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(READY)  ## make .venv with the development extras (PYTHON=python3.12 chooses another Python)

# The stamp is written last: an interrupted installation starts again, a finished one does not. pip compiles one file after the
# other, compileall beside it what is there already, and in the end the rest on every core; what is no Python, such as templates,
# it leaves out and says so by its exit code. A quarter of the whole is hardly ever imported; Python compiles such a file when
# it is.
SELDOM := tests?|_inductor|sqlalchemy|pip|setuptools|mypyc?|debugpy|networkx|fontTools|sklearn|lexers
COMPILE := $(BIN)/python -m compileall -qq -x '/($(SELDOM))/' $(VENV)/lib/python3*/site-packages
$(READY): settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"ptycho_nb needs Python >= 3.11, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "python -m venv failed; Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (some minutes, about 3 GB, once)"
	@$(BIN)/python -m pip install -qq --no-compile --editable '.[$(EXTRAS)]' & installing=$$!; \
	while kill -0 $$installing 2>/dev/null; do $(COMPILE) -j 1; sleep 3; done; wait $$installing
	@$(COMPILE) -j 0 || true
	@touch $@

dose: $(READY)  ## one arm from simulation to metrics, quick profile (some minutes)
	@$(BIN)/ptycho-nb run-arm studies_nbs/dose.ipynb runs/dose --again -p profile quick

dose-full: $(READY)  ## two arms in full, about 10 minutes: 1e9 photons, and 1e4 with a defocused probe; with the cnn
	@$(BIN)/ptycho-nb run-arm studies_nbs/dose.ipynb runs/dose-full-1e9 --again -p profile full
	@$(BIN)/ptycho-nb run-arm studies_nbs/dose.ipynb runs/dose-full-1e4 --again -p profile full \
	    -p nphotons 1e4 -p probe defocused -p n_train 1000

star: $(READY)  ## reconstruct a measured scan: make star DATA=path/to/scan.npz
	@test -n "$(DATA)" || { echo "make star needs a file: make star DATA=path/to/scan.npz"; exit 2; }
	@$(BIN)/ptycho-nb run-arm studies_nbs/reconstruct.ipynb runs/star --again -p data_path "$(DATA)"

study-dose: $(READY)  ## two doses, two losses, side by side (about 10 minutes); goes on where it was stopped
	@$(BIN)/ptycho-nb run-arm studies_nbs/dose_comparison.ipynb runs/study-dose -p profile full -p precision $(PRECISION)

study-dose-curve: $(READY)  ## eight doses, two losses, three seeds (about 40 minutes with PRECISION=bfloat16); goes on where it was stopped
	@$(BIN)/ptycho-nb run-arm studies_nbs/dose_curve.ipynb runs/study-dose-curve -p profile full -p precision $(PRECISION)

study-overlap: $(READY)  ## every method with few photons, and the same light in few or many patterns (10 minutes); goes on where it was stopped
	@$(BIN)/ptycho-nb run-arm studies_nbs/dose_overlap.ipynb runs/study-overlap -p profile quick

photon-grid: $(READY)  ## the photon grid in small, a baseline on it and every method beside the limit (a minute)
	@$(BIN)/ptycho-nb run-arm studies_nbs/photon_grid.ipynb runs/photon-grid --again -p profile quick

photon-grid-full: $(READY)  ## the whole grid (1.7 GB) and the baseline of 50 epochs (5 minutes of one core)
	@$(BIN)/ptycho-nb run-arm studies_nbs/photon_grid.ipynb runs/photon-grid-full -p profile full -p precision $(PRECISION)

pretrained: $(READY)  ## go on training the network that comes with the package (half an hour; SEED=3: another set of scans)
	@$(BIN)/ptycho-nb run-arm studies_nbs/pretrain.ipynb runs/pretrained --again -p profile full -p start_from package \
		-p learning_rate 7e-4 -p seed $(or $(SEED),2)
	@cp runs/pretrained/amortised.npz ptycho_nb/weights/amortised.npz

test: $(READY)  ## every check and every test (about 10 minutes on 2 cores)
	@PATH="$(CURDIR)/$(BIN):$$PATH" tests/run_all.sh

test-long: $(READY)  ## what takes too long for every change: the studies with their defaults, every case on JAX
	@PATH="$(CURDIR)/$(BIN):$$PATH" tests/run_all.sh --long

fuzz: $(READY)  ## 10 000 mutated files for every reader, a twentieth for the slow ones (half an hour; N=1000: fewer)
	@PYTHONPATH=$(CURDIR) $(BIN)/python tests/fuzz.py -n $(N) --keep runs/fuzz

bench: $(READY)  ## quality, speed and scaling in one table, runs/bench (25 minutes, nothing beside it; then make publish)
	@$(BIN)/python benchmarks/bench.py --out runs/bench

bench-quick: $(READY)  ## the same, small (2 minutes)
	@$(BIN)/python benchmarks/bench.py --quick --out runs/bench-quick

bench-workers: $(READY)  ## is a sweep on two workers 1.6 times as fast as on one? (nothing beside it)
	@$(BIN)/python benchmarks/workers.py

bench-rivals: $(READY)  ## pty-chi's engines beside estimate, network and the one call, runs/rivals (long; goes on where it stopped)
	@$(BIN)/python benchmarks/rivals.py --out runs/rivals

publish: $(READY)  ## the results of `make bench` into benchmarks/RESULTS.md and the README
	@$(BIN)/python benchmarks/publish.py runs/bench
	@$(BIN)/python tests/in_step.py readme --write

docs: $(READY)  ## the documentation as a site in build/docs/html (half a minute, without a network)
	@$(BIN)/python docs/build.py

gallery: $(READY)  ## run every study in its quick profile for the site's gallery (NAMES="dose explore": only these)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docs/gallery.py $(NAMES)

export: $(READY)  ## notebooks to modules: run it after editing a notebook
	@PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_export
	@$(BIN)/python tests/in_step.py clean --write

readme: $(READY)  ## nbs/index.ipynb to README.md
	@$(BIN)/python tests/in_step.py readme --write

clean:  ## remove runs and caches (.venv stays)
	rm -rf runs build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
