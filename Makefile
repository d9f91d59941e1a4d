# Everything lives in .venv; a stamp file in it remembers what was installed and when.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
RUN := results/runs/quickstart
FRESH := .venv-fresh
TORCH ?= torch

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# All targets share one environment, so goals given together run one after the other, also with -j.
.NOTPARALLEL:
.PHONY: help quickstart test lint format bench constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.runtime ## install, run the smallest suite, write its report
	$(VENV)/bin/stitchbench run quickstart --store $(RUN)
	$(VENV)/bin/stitchbench report $(RUN)

test: $(VENV)/.dev ## run the tests (no GPU, no network)
	$(VENV)/bin/pytest -q -n 2 --dist loadfile -p no:benchmark

lint: $(VENV)/.dev ## check style, formatting and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(VENV)/.dev ## repair what ruff can repair
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

bench: $(VENV)/.dev ## time the inner loops
	$(VENV)/bin/pytest tests/benchmarks --benchmark-only

# From the ranges alone, in an environment of its own. CUDA's libraries follow from PyTorch's build.
constraints: ## renew constraints.txt (TORCH=torch==2.x.y keeps PyTorch where it is)
	rm -rf $(FRESH)
	$(PYTHON) -m venv $(FRESH)
	$(FRESH)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' $(TORCH)
	head -n 1 constraints.txt > $(FRESH)/new
	$(FRESH)/bin/python -m pip freeze --all --exclude-editable --exclude pip > $(FRESH)/all
	grep -E -v '^(triton|cuda-.*|nvidia-[^m].*)==' $(FRESH)/all | sed 's/+.*//' | LC_ALL=C sort -f >> $(FRESH)/new
	mv $(FRESH)/new constraints.txt
	rm -rf $(FRESH)

clean: ## remove the environment, caches, builds and local runs
	rm -rf $(VENV) $(FRESH) results/runs build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
		echo "Python 3.11, 3.12 or 3.13 is needed, but $(PYTHON) is: $$($(PYTHON) --version 2>&1 || true)"; \
		echo "Name another interpreter: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; \
		exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing the package and what it needs (PyTorch is the large one)"
	@$(PIP) -e . -c constraints.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing the development tools"
	@$(PIP) -e '.[dev]' -c constraints.txt
	@touch $@
