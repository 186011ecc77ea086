# One command is enough on a fresh clone: each target installs what is missing first.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
EXTRA  ?= cpu# cpu or gpu
VENV   := .venv
BIN    := $(VENV)/bin
# uv does not read pip's settings: where pip is told of a folder with wheels, tell uv too, and take
# torch from there; elsewhere let uv choose the matching PyTorch build itself.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
TORCH :=
else
TORCH := --torch-backend $(if $(filter gpu,$(EXTRA)),auto,cpu)
endif
UV := $(BIN)/uv
# Bytecode is compiled once here, or each of a run's ten processes would compile all it imports.
INSTALL := $(UV) pip install --quiet --compile-bytecode --python $(BIN)/python $(TORCH)

.PHONY: help install demo test faults check bench lock clean
help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(UV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.installed-%: locks/%.txt pyproject.toml | $(UV)
	@echo "installing locks/$*.txt"
	$(INSTALL) -r locks/$*.txt
	$(INSTALL) --no-deps -e .
	@touch $@

install: $(VENV)/.installed-$(EXTRA)  ## build .venv from the lock (EXTRA=gpu for CUDA)

demo: install  ## SFT, reward model and online RL on this machine, with a report
	$(BIN)/attune demo $(ARGS)

test: $(VENV)/.installed-dev  ## every test that needs no GPU, but for the long fault tests
	$(BIN)/python -m pytest -m "not gpu and not faults" $(ARGS)

faults: $(VENV)/.installed-dev  ## kill processes, cut networks, fill disks (as root, 20 min)
	$(BIN)/python -m pytest -m faults $(ARGS)

check: $(VENV)/.installed-dev  ## format, lint, types and the fast tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/python -m pytest -m "not gpu and not slow and not faults" $(ARGS)

bench: $(VENV)/.installed-dev $(VENV)/.installed-bench  ## one JSON line per benchmark
	$(BIN)/python -m tests.bench $(ARGS)

lock: | $(UV)  ## write the locks again from pyproject.toml
	$(UV) pip compile -q pyproject.toml --extra cpu -o locks/cpu.txt $(LOCK)
	$(UV) pip compile -q pyproject.toml --extra cpu --extra dev -c locks/cpu.txt -o locks/dev.txt $(LOCK)
	$(UV) pip compile -q pyproject.toml --extra cpu --extra bench -c locks/dev.txt -o locks/bench.txt $(LOCK)
	UV_FIND_LINKS= $(UV) pip compile -q pyproject.toml --extra gpu -o locks/gpu.txt $(LOCK)
LOCK := --no-header --no-annotate --no-emit-index-url --no-emit-find-links --python-version 3.11

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache
