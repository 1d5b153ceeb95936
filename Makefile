# Everything runs in .venv, made here from $(PYTHON). `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The demo's layers are too small to share: more threads would wait longer than they compute.
IMAGES := OMP_NUM_THREADS=1 $(BIN)/python -m examples.images
DIGITS := fit_and_test --config examples/images/configs/residual_flow_digits.yaml

.DEFAULT_GOAL := help
.PHONY: help demo demo-short bench test test-slow lint format types docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.images ## train a residual flow on the digits; results in runs/demo/
	@rm -rf runs/demo
	@$(IMAGES) $(DIGITS) --trainer.default_root_dir runs/demo

demo-short: $(VENV)/.images ## the same, a few steps only
	@rm -rf runs/demo-short
	@$(IMAGES) $(DIGITS) --trainer.default_root_dir runs/demo-short --trainer.max_epochs 2 \
		--model.test_draws 1

bench: $(VENV)/.bench ## measure against normflows and torchflows; results in runs/bench/
	@$(BIN)/python -m benchmarks.speed $(ARGS)

test: $(VENV)/.test ## run the test suite, a process a core
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 $(ARGS)

test-slow: $(VENV)/.test ## run the slow tests
	@$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.dev ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev ## format, and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.dev ## check the types of the package
	@$(BIN)/mypy

docs: $(VENV)/.dev ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove the environment and all that was made
	rm -rf $(VENV) runs site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch and torchvision in one call, so that pip chooses two that fit each other.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "Creating $(VENV) and installing torch (large: some minutes, the first time only)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install 'torch>=2.4' torchvision
	@touch $@

# A stamp for each extra: installed anew only when pyproject.toml has changed.
$(VENV)/.images $(VENV)/.bench $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: $(VENV)/.torch pyproject.toml
	@echo "Installing pyro-resflow[$*] into $(VENV)"
	@$(PIP) install --editable '.[$*]'
	@touch $@
