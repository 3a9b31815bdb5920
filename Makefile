# Two commands do everything on a fresh machine: `make train` and `make test`.
# Both set up .venv first (pinned by constraints.txt) and only when something changed.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
TORCH   := 2.13.0

# gpu: the full CUDA stack; cpu: the same training code on Unsloth's CPU backend, no CUDA packages.
PROFILE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
STAMP   := $(VENV)/installed-$(PROFILE)

# make train CONFIG=configs/qwen3-8b-24gb.yaml DATA=my.jsonl ARGS="--set train.epochs=1"
CONFIG  ?=
DATA    ?=
ARGS    ?=

.DEFAULT_GOAL := help
.PHONY: help install train test test-gpu bench bench-gpu bench-data bench-export benchmarks faults lint format clean

help: ## show these verbs
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | \
	  awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

install: $(STAMP) ## set up .venv and nothing else (PROFILE=cpu or gpu; found by itself)

train: $(STAMP) ## fine-tune, export and prove; goes on where it was stopped (CONFIG=... DATA=... ARGS=...)
	$(BIN)/qdora-fast train --auto-resume $(CONFIG) $(if $(DATA),--set "data.path=$(DATA)") $(ARGS)

test: $(STAMP) ## run the tests on all cores (ARGS="-k merge" for some of them, ARGS="-n 0 -s" in one process)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not gpu" $(ARGS)

test-gpu: $(STAMP) ## run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

bench: $(STAMP) ## measure the fused layers against PEFT's, correctness first (ARGS="--full")
	$(BIN)/qdora-fast bench $(ARGS)

bench-gpu: $(STAMP) ## the same on an NVIDIA GPU beside Unsloth's own training, in 8 minutes
	$(BIN)/qdora-fast bench-gpu $(ARGS)

bench-data: $(STAMP) ## prepare rows with planted duplicates and faults: what is found, then speed and memory
	$(BIN)/qdora-fast bench-data $(ARGS)

bench-export: $(STAMP) ## export tuned runs and 70B-sized shards: cost, closeness, what is left of the gain
	$(BIN)/qdora-fast bench-export $(ARGS)

benchmarks: $(STAMP) ## write the measured part of BENCHMARKS.md from the kept records
	$(BIN)/python -m qdora_fast.benchmark.records

faults: $(STAMP) ## kill, fill, flip and break real runs and count what is lost (ARGS="--full", "--only kill")
	$(BIN)/python -m faults $(ARGS)

lint: $(STAMP) ## check style and types, change nothing
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(STAMP) ## put imports and layout in order
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis unsloth_compiled_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11-3.13 is needed; name one: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)

# The CPU build of torch first: pip may know one (version +cpu); else uv knows where CPU builds live.
$(VENV)/installed-cpu: $(VENV)/bin/python pyproject.toml constraints.txt Makefile
	@echo "Setting up $(VENV) for the CPU (no CUDA packages); this happens once."
	$(PIP) install --quiet "torch==$(TORCH)+cpu" || \
	  { $(PIP) install --quiet uv && $(BIN)/uv pip install --python $(BIN)/python --torch-backend cpu "torch==$(TORCH)"; }
	$(PIP) install --quiet -c constraints.txt -e ".[cpu,dev]"
	$(PIP) install --quiet -c constraints.txt --no-deps unsloth unsloth_zoo
	@rm -f $(VENV)/installed-* && touch $@

$(VENV)/installed-gpu: $(VENV)/bin/python pyproject.toml constraints.txt Makefile
	@echo "Setting up $(VENV) with the CUDA stack (about 6 GB); this happens once."
	$(PIP) install -c constraints.txt -e ".[gpu,dev]"
	@rm -f $(VENV)/installed-* && touch $@
