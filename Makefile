# Set-up, runs and tests. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MINIMUM := .venv-minimum
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run describe test test-slow test-gpu test-minimum torture lint format clean

help:  ## this list
	@echo "Usage: make TARGET [ARGS=\"...\"]"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1|\2/' | \
		awk -F'|' '{ printf "%-15s %s\n", $$1, $$2 }'
	@echo
	@echo "  make run ARGS=\"model=nf_resnet50 norm=agc agc.clip=0.01\""

setup: $(INSTALLED)  ## make .venv and install the project with its pinned versions

# made again only when one of these files is newer than the last complete installation
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name it: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV) (torch is large; this takes a minute or more)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: setup  ## train: the default, or what ARGS says
	@$(BIN)/python -m runner $(ARGS)

describe: setup  ## print every model's parameters, multiply-adds and activations
	@$(BIN)/python scripts/describe.py $(ARGS)

test: setup  ## run the tests but for the slow ones; ARGS go to pytest
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(ARGS)

test-slow: setup  ## run the slow tests: processes killed, several devices, launchers
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-gpu: setup  ## run the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu $(ARGS)

torture: setup  ## kill runs, damage their files, mistype commands, fill disks, ...; ARGS: KIND ... --seed S --minutes M
	@$(BIN)/python scripts/torture.py $(ARGS)

test-minimum: $(MINIMUM)/.installed  ## run the fast tests with the lowest versions that pyproject.toml allows, in .venv-minimum
	@OMP_NUM_THREADS=1 $(MINIMUM)/bin/python -m pytest -n auto --dist worksteal -m "not slow" -p no:cacheprovider $(ARGS)

# each >= of pyproject.toml as ==
$(MINIMUM)/.installed: pyproject.toml
	@test -x $(MINIMUM)/bin/python || $(PYTHON) -m venv $(MINIMUM)
	@sed -nE 's/^ *"([a-z-]+)>=([0-9.]+).*/\1==\2/p' pyproject.toml > $(MINIMUM)/constraints.txt
	@$(MINIMUM)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(MINIMUM)/constraints.txt --editable '.[dev]'
	@touch $@

lint: setup  ## check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup  ## mend what the linter can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove .venv, .venv-minimum and caches; outputs/ stays
	@rm -rf $(VENV) $(MINIMUM) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
