# Two commands do everything on a fresh machine: `make train` and `make test`.
# Both set up .venv first (what locks/ names, checked by hash) and only when something changed.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
TORCH   := $(shell sed -n 's/^torch==//p' constraints.txt)

# gpu: the full CUDA stack; cpu: the same training code on Unsloth's CPU backend, no CUDA packages.
PROFILE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
STAMP   := $(VENV)/installed-$(PROFILE)

# on: each file must be, byte for byte, one that locks/ names, in one of the tested versions. off: the same versions,
# unchecked. Outside the check: pip, as Python brings it; torch on the CPU, whose build is another file at each source
# (its version is pinned); what an older set-up left in .venv (make clean). --no-deps: nothing may come along unnamed;
# --no-build-isolation: source is built with the checked build.txt, not with what the index has today.
HASHES  ?= on
$(if $(filter-out on off,$(HASHES)),$(error HASHES is on or off))
LOCKED  := $(PIP) install --quiet --no-deps --no-build-isolation --require-hashes

# make train CONFIG=configs/qwen3-8b-24gb.yaml DATA=my.jsonl ARGS="--set train.epochs=1"
CONFIG  ?=
DATA    ?=
ARGS    ?=

LOCKING = $(if $(filter off,$(HASHES)),$(PIP) install --quiet -c constraints.txt uv packaging hatchling,$(LOCKED) -r locks/uv.txt \
	-r locks/build.txt)
TORCH_BY_UV = $(BIN)/uv pip install --python $(BIN)/python --torch-backend cpu "torch==$(TORCH)"

.DEFAULT_GOAL := help
.PHONY: help install lock lock-newest train test test-all test-gpu bench bench-gpu bench-data bench-export real benchmarks faults mutants \
        proofs docs docs-pictures lint format clean

help: ## show these verbs
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | \
	  awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

install: $(STAMP) ## set up .venv and nothing else (PROFILE=cpu or gpu; found by itself)

lock: $(VENV)/bin/python ## write locks/ anew after a change of versions in constraints.txt or pyproject.toml
	$(LOCKING)
	$(BIN)/python -m locks.make_locks

lock-newest: $(VENV)/bin/python ## raise constraints.txt to the newest that resolves, say what moved and what holds the rest, then lock
	$(LOCKING)
	$(BIN)/python -m locks.newest && $(BIN)/python -m locks.make_locks

train: $(STAMP) ## fine-tune, export and prove; goes on where it was stopped (CONFIG=... DATA=... ARGS=...)
	$(BIN)/qdora-fast train --auto-resume $(CONFIG) $(if $(DATA),--set "data.path=$(DATA)") $(ARGS)

test: $(STAMP) ## run a pull request's tests on all cores (ARGS="-k merge" for some of them, ARGS="-n 0 -s" in one process)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not gpu and not exhaustive" $(ARGS)

test-all: $(STAMP) ## run all tests: whole grids of shapes and types, four times the generated examples
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not gpu" --hypothesis-profile=all $(ARGS)

test-gpu: $(STAMP) ## run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

bench: $(STAMP) ## measure the fused layers against PEFT's, correctness first (ARGS="--full")
	$(BIN)/python -m benchmarks engine $(ARGS)

bench-gpu: $(STAMP) ## the same on an NVIDIA GPU beside Unsloth's own training, in 8 minutes
	$(BIN)/python -m benchmarks gpu $(ARGS)

bench-data: $(STAMP) ## prepare rows with planted duplicates and faults: what is found, then speed and memory
	$(BIN)/python -m benchmarks data $(ARGS)

bench-export: $(STAMP) ## export tuned runs and 70B-sized shards: cost, closeness, what is left of the gain
	$(BIN)/python -m benchmarks export $(ARGS)

real: $(STAMP) ## tune, compare, export and ask SmolLM2-135M, in 15 minutes on two cores (ARGS="--full" for hours)
	$(BIN)/python -m benchmarks real $(ARGS)

benchmarks: $(STAMP) ## write the measured part of BENCHMARKS.md from the kept records
	$(BIN)/python -m benchmarks.records

faults: $(STAMP) ## kill, fill, flip and break real runs and count what is lost (ARGS="--full", "--only kill")
	$(BIN)/python -m faults $(ARGS)

mutants: $(STAMP) ## put single faults into the code, one at a time: do the tests notice? (ARGS="--only ID")
	$(BIN)/python -m mutants $(ARGS)

proofs: $(STAMP) ## export real runs rightly and wrongly and count false alarms and misses (ARGS="--size full")
	$(BIN)/python -m proofs $(ARGS)

docs: $(VENV)/installed-docs ## write the reference from the code and build the site into site/, every link checked
	$(BIN)/python -m docs.make_reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

docs-pictures: $(STAMP) ## take the pictures of docs/images anew (needs Chromium: CHROMIUM=/path/of/it)
	$(if $(CHROMIUM),CHROMIUM="$(CHROMIUM)") $(BIN)/python -m docs.make_pictures

lint: $(STAMP) ## check style and types, change nothing
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(STAMP) ## put imports and layout in order
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis unsloth_compiled_cache site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11-3.13 is needed; name one: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)

# The CPU build of torch: pip may know one (version +cpu); else uv knows where CPU builds live.
$(VENV)/installed-cpu: $(VENV)/bin/python pyproject.toml constraints.txt locks/build.txt locks/base.txt locks/dev.txt locks/uv.txt \
                       Makefile
	@echo "Setting up $(VENV) for the CPU (no CUDA packages); this happens once."
ifeq ($(HASHES),off)
	$(PIP) install --quiet "torch==$(TORCH)+cpu" || \
	  { $(PIP) install --quiet -c constraints.txt uv && $(TORCH_BY_UV); }
	$(PIP) install --quiet -c constraints.txt -e ".[cpu,dev]"
	$(PIP) install --quiet -c constraints.txt --no-deps unsloth unsloth_zoo
else
	@$(call checked,build.txt)
	$(PIP) install --quiet --no-deps "torch==$(TORCH)+cpu" || { $(LOCKED) -r locks/uv.txt && $(TORCH_BY_UV) --no-deps; }
	@$(call checked,base.txt -r locks/dev.txt)
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
endif
	@rm -f $(VENV)/installed-* && touch $@

# The CUDA stack, torch included, is locked from the index's own hashes; no GPU has run it yet.
$(VENV)/installed-gpu: $(VENV)/bin/python pyproject.toml constraints.txt $(wildcard locks/*.txt) Makefile
	@echo "Setting up $(VENV) with the CUDA stack (about 6 GB); this happens once."
ifeq ($(HASHES),off)
	$(PIP) install -c constraints.txt -e ".[gpu,dev]"
else
	@$(call checked,build.txt)
	@$(call checked,base.txt -r locks/gpu.txt)
	@$(call checked,dev.txt)
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
endif
	@rm -f $(VENV)/installed-* && touch $@

# What builds the site, and nothing else needs.
$(VENV)/installed-docs: $(STAMP) locks/docs.txt
ifeq ($(HASHES),off)
	$(PIP) install --quiet -c constraints.txt mkdocs-material mkdocstrings-python
else
	@$(call checked,docs.txt)
endif
	@touch $@

checked = echo "$(LOCKED) -r locks/$(1)" && $(LOCKED) -r locks/$(1) || { echo "If hashes do not match, packages \
	here are not the files that were tested; 'make install HASHES=off' takes the same versions unchecked."; exit 1; }
