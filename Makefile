# Two commands: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
# Commands of the environment come first, so that the stages find their python.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: help setup demo sweep ablation bench test check format repro ui clean

help:
	@echo "make demo      set up, then the whole pipeline on synthetic lesions (minutes, no data needed)"
	@echo "make sweep     four experiments on synthetic lesions, compared by val (minutes)"
	@echo "make ablation  every configuration of experiments/ablation.yaml, on what params.yaml says (hours)"
	@echo "make bench     speed and memory beside segmentation_models.pytorch, on synthetic lesions (minutes)"
	@echo "make test      set up, then lint, format check, types and all tests"
	@echo "make repro     the pipeline on ISIC 2016 itself, or on what params.yaml says: dvc repro"
	@echo "make ui        the MLflow UI on this project's runs, it prints where"
	@echo "make check     lint, format check and types only"
	@echo "make format    mend what lint and format can mend"
	@echo "make clean     remove .venv, the demo and the small sweep; data, results and runs stay"

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'error: Python 3.11 or newer is needed. Run: make PYTHON=python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	@python -m experiments.demo

sweep: setup
	@python -m experiments.sweep_demo

ablation: setup
	@lesionseg ablation

# Without the peer's package the benchmarks say so, and measure the rest.
bench: setup
	@python -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('segmentation_models_pytorch'))" || \
		python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c requirements.lock -e '.[bench]' || true
	@python -m benchmarks

repro: setup
	dvc repro

ui: setup
	@mkdir -p mlruns
	@if ls results/*/run.json > /dev/null 2>&1; then lesionseg replay || true; fi
	@echo "The runs: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
	mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db

check: setup
	ruff check .
	ruff format --check .
	mypy

# A file of tests at a time to each core, and to each a thread: a set-up is shared within a file.
# The files go out in the order of tests/conftest.py, the longest first.
test: check
	OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

format: setup
	ruff check --fix .
	ruff format .

clean:
	rm -rf .venv .demo .sweep
