# Everything runs in .venv, made here from $(PYTHON). `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VERSION := -c 'import sys; print("Python %d.%d" % sys.version_info[:2])'
PIP := $(BIN)/python -m pip --disable-pip-version-check
# CPU=1 installs PyTorch without CUDA.
TORCH_INDEX := $(if $(CPU),--index-url https://download.pytorch.org/whl/cpu)
# CONSTRAINTS=FILE limits what pip may choose; test-lowest sets it.
LIMITS := $(CONSTRAINTS:%=--constraint %)
# The demo's layers are too small to share: more threads would wait longer than they compute.
IMAGES := OMP_NUM_THREADS=1 $(BIN)/python -m examples.images
DIGITS := fit_and_test --config examples/images/configs/residual_flow_digits.yaml

# $(call train,FOLDER,SETTINGS) trains on the digits and deletes nothing: a finished run that is in
# the folder moves to FOLDER.1, .2, ..., an unfinished one is resumed.
define train
n=1; while [ -e $(1).$$n ]; do n=$$((n + 1)); done; \
if [ -e $(1)/report.html ]; then \
	mv $(1) $(1).$$n && echo "The run that was in $(1) is now in $(1).$$n"; \
fi; \
last=$(1)/checkpoints/last.ckpt; \
if [ -e $$last ]; then \
	echo "Resuming the unfinished run in $(1); delete this folder to start afresh"; \
	set -- --ckpt_path $$last; \
fi; \
$(IMAGES) $(DIGITS) --trainer.default_root_dir $(1) $(2) "$$@"
endef

.DEFAULT_GOAL := help
.PHONY: help demo demo-short bench test test-slow test-lowest lint format types docs docs-execute clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.images ## train a residual flow on the digits; results in runs/demo/
	@$(call train,runs/demo)

demo-short: $(VENV)/.images ## the same, a few steps only
	@$(call train,runs/demo-short,--trainer.max_epochs 2 --model.test_draws 1)

bench: $(VENV)/.bench ## measure against normflows and torchflows; results in runs/bench/
	@$(BIN)/python -m benchmarks.speed $(ARGS)

test: $(VENV)/.test ## run the test suite, a process a core
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 $(ARGS)

test-slow: $(VENV)/.test ## run the slow tests
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-lowest: ## run the tests under the lowest versions that pyproject.toml allows
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 12) and \
		"The lowest versions run on Python 3.10 and 3.11: make test-lowest PYTHON=python3.10")'
	@$(MAKE) --no-print-directory test VENV=.venv-lowest CONSTRAINTS=tests/constraints-lowest.txt

lint: $(VENV)/.dev ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev ## format, and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.dev ## check the types of the package
	@$(BIN)/mypy

docs-execute: $(VENV)/.tutorials ## execute the tutorials, in docs/tutorials/, and keep their outputs
	@OMP_NUM_THREADS=1 $(BIN)/python docs/extensions/tutorials.py $(ARGS)

docs: $(VENV)/.docs ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove the environment and all that was made
	rm -rf $(VENV) .venv-lowest runs site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment keeps the Python that made it: say so where another one is asked for.
.PHONY: same-python
same-python:
ifneq ($(origin PYTHON),file)
	@if [ -e $(BIN)/python ] && [ "$$($(BIN)/python $(VERSION))" != "$$($(PYTHON) $(VERSION))" ]; then \
		echo "$(VENV) was made by $$($(BIN)/python $(VERSION)), which PYTHON=$(PYTHON) is not:" \
			"run make clean first, or name another folder: VENV=.venv-other" >&2; \
		exit 1; \
	fi
endif

$(VENV)/.python: | same-python
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# torch and torchvision in one call, so that pip chooses two that fit each other.
$(VENV)/.torch: | $(VENV)/.python
	@echo "Installing PyTorch into $(VENV), the first time only (CPU=1 leaves out CUDA, its largest part)"
	@$(PIP) install $(LIMITS) $(TORCH_INDEX) 'torch>=2.4' torchvision
	@touch $@

# A stamp for each extra: installed anew only when pyproject.toml has changed.
$(VENV)/.images $(VENV)/.tutorials $(VENV)/.bench $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: $(VENV)/.torch pyproject.toml $(CONSTRAINTS)
	@echo "Installing pyro-resflow[$*] into $(VENV)"
	@$(PIP) install $(LIMITS) --editable '.[$*]'
	@touch $@

# The documentation is made from the sources: it takes neither PyTorch nor the package, only the
# packages that pyproject.toml lists under docs.
LIST_EXTRA := import importlib, sys; \
	toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli"); \
	project = toml.load(open("pyproject.toml", "rb"))["project"]; \
	print(*project["optional-dependencies"][sys.argv[1]], sep="\n")

$(VENV)/.docs: pyproject.toml | $(VENV)/.python
	@echo "Installing what builds the documentation into $(VENV)"
	@$(BIN)/python -c '$(LIST_EXTRA)' docs > $@.partial
	@$(PIP) install --requirement $@.partial
	@mv $@.partial $@
