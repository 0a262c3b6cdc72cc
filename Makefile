# Two commands: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
# The build of torch: cpu, cuda, or auto, which is cuda where NVIDIA's driver is installed.
TORCH ?= auto
BIN := .venv/bin
BUILD := $(if $(filter auto,$(TORCH)),$(if $(shell command -v nvidia-smi 2> /dev/null),cuda,cpu),$(TORCH))
$(if $(filter auto cpu cuda,$(TORCH)),,$(error TORCH must be auto, cpu or cuda, got $(TORCH)))
UV := $(shell command -v uv 2> /dev/null)
# uv where there is one, it is several times faster. It does not read pip's settings: those in the
# environment are handed on.
OF_PIP = $(addprefix --default-index ,$(PIP_INDEX_URL)) $(addprefix --index ,$(PIP_EXTRA_INDEX_URL)) \
	$(addprefix --find-links ,$(PIP_FIND_LINKS))
INSTALL = $(if $(UV),uv pip install --python $(BIN)/python $(OF_PIP),$(BIN)/python -m pip install \
	--disable-pip-version-check) --quiet --no-deps
# Of an extra beside the lock: what is installed keeps its version, the extra's own packages are not locked.
EXTRA = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
	-c .venv/constraints.txt
# PyPI has only CUDA's builds for Linux; PyTorch itself serves the others.
CPU_BUILDS := https://download.pytorch.org/whl/cpu
# Commands of the environment come first, so that the stages find their python.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: help setup lock docs docs-numbers docs-recipes doctor demo sweep ablation curve bench test check format repro \
	experiments ui screenshots clean

help:
	@echo "make demo      set up, then the whole pipeline on synthetic lesions (minutes, no data needed)"
	@echo "make sweep     four experiments on synthetic lesions, compared by val (minutes)"
	@echo "make ablation  every configuration of experiments/ablation.yaml, on what params.yaml says (hours)"
	@echo "make curve     how both models gain from more labels, on what params.yaml says (hours)"
	@echo "make bench     speed and memory beside segmentation_models.pytorch; renews docs/speed.md (minutes)"
	@echo "make test      set up, then lint, format check, types and all tests"
	@echo "make doctor    is this machine ready, and if not, what to do"
	@echo "make repro     the pipeline on ISIC 2016 itself, or on what params.yaml says: dvc repro"
	@echo "make experiments  the dvc exp runs of this commit, the best on val first: scores and changes"
	@echo "make ui        MLflow pages with the runs of this project and of the demo; prints the addresses"
	@echo "make check     lint, format check and types only"
	@echo "make format    fix what lint and format can fix"
	@echo "make docs      these pages as a site, links checked; make docs-numbers writes their numbers anew,"
	@echo "               make docs-recipes what their commands print, make screenshots their pictures of MLflow"
	@echo "make clean     remove .venv, the demo, the small sweep and the site; data, results and runs stay"

setup: .venv/ready

.venv/ready: requirements.lock requirements-$(BUILD).lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and \
		'error: Python 3.11 to 3.13 is needed, got %d.%d. Run: make PYTHON=python3.11' % sys.version_info[:2])"
	@echo "setting up .venv: $$($(PYTHON) -V), $(if $(UV),uv,pip), the $(BUILD) build of torch (docs/setup.md)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) --require-hashes -r requirements-$(BUILD).lock $(if $(filter cpu,$(BUILD)),2> /dev/null || \
		$(INSTALL) --require-hashes -r requirements-cpu.lock --extra-index-url $(CPU_BUILDS))
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) --no-build-isolation -e .
	@touch $@

.venv/constraints.txt: .venv/ready
	@sed -n 's/^\([a-z].*[^ ]\) \\$$/\1/p' requirements.lock > $@

lock:
	@.ci/lock $(UPGRADE)

doctor: setup
	@lesionseg doctor

demo: setup
	@python -m experiments.demo

sweep: setup
	@python -m experiments.sweep_demo

ablation: setup
	@lesionseg ablation

curve: setup
	@dvc repro preprocess
	@lesionseg curve

# Without the peer's package the benchmarks say so, and measure the rest.
bench: .venv/constraints.txt
	@python -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('segmentation_models_pytorch'))" || \
		$(EXTRA) -e '.[bench]' || true
	@python -m benchmarks
	@python docs/fill_numbers.py speed results/benchmarks.json

repro: setup
	dvc repro

# Jaccards and the parameters that differ, of some 150 columns. `--md`, as DVC squeezes its other tables into
# the terminal. Where nothing has run yet there is nothing to sort by.
SHOW = dvc exp show --md --only-changed --drop 'Created|.*/|.*dice' --keep '(frozen|tuned)\.(jaccard|val)'
experiments: setup
	@$(SHOW) --sort-by tuned.val --sort-order desc 2> /dev/null || $(SHOW)

ui: setup
	@if ls results/*/run.json > /dev/null 2>&1; then lesionseg replay || true; fi
	@lesionseg ui

# Of the demo's runs; needs chromium.
screenshots: setup
	@python -m experiments.screenshots

check: setup
	ruff check .
	ruff format --check .
	mypy

# A file of tests at a time to each core, and to each a thread: a set-up is shared within a file.
# The files go out in the order of tests/conftest.py, the longest first.
test: check
	OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

docs: .venv/constraints.txt
	@python -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('material'))" || $(EXTRA) -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 mkdocs build --site-dir site
	@echo "Open the pages: $(CURDIR)/site/index.html"

# From the files in docs/results/; another run takes their place with: docs/fill_numbers.py results FOLDER ...
docs-numbers:
	@$(PYTHON) docs/fill_numbers.py

# The commands of the docs run anew, in small projects: half an hour where two cores have other work.
docs-recipes: setup
	@python -m experiments.recipes
	@python docs/fill_numbers.py

format: setup
	ruff check --fix .
	ruff format .

clean:
	rm -rf .venv .demo .sweep site
