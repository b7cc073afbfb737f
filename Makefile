# Every target makes `.venv` and installs what is missing; nothing else is needed but Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A worker a core, each on one thread: the models of the tests are too small for more.
PYTEST := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: install quickstart bench test test-all lint clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart  install, build pets and styles, train btl, vpl and ours, evaluate (runs/quickstart/)"
	@echo "make bench       all benchmarks (half an hour on 1 core): evals/bench/results.md"
	@echo "make test        the fast tests (under 10 minutes on 2 cores)"
	@echo "make test-all    every test that this machine can run"
	@echo "make lint        ruff check and ruff format --check"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[offline,quantization,llm,dev]'
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/pluralrlhf eval suite evals/quickstart.yaml --output_dir runs/quickstart

bench: $(STAMP)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m evals.bench

test: $(STAMP)
	$(PYTEST)

test-all: $(STAMP)
	$(PYTEST) -m 'not gpu'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs
