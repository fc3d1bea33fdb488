# First use of any target builds .venv from the exact lock; later uses only check that it is current.
# ARGS is passed through: make serve ARGS="--model Qwen/Qwen3-0.6B --port 9100"

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
ARGS ?=
# Any Python runs the bootstrap, which finds the one that fits; PYTHON=/path names one.
PYTHON ?=
export PYTHON
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.tritonlive-stamp

.PHONY: help
help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

$(STAMP): pyproject.toml requirements/cpu.txt requirements/dev.txt requirements/bootstrap.py
	@python="$$(type -P python3.11 || type -P python3 || true)"; \
	if [[ -z "$$python" ]]; then \
	  echo "tritonlive: no Python. On Debian or Ubuntu: apt-get install python3.11 python3.11-venv libpython3.11" >&2; \
	  exit 1; \
	fi; \
	"$$python" requirements/bootstrap.py --venv $(VENV)

.PHONY: serve
serve: $(STAMP)  ## Serve a model: OpenAI API on 9000, Triton on 8000-8002 (ARGS="--help" for more)
	@exec $(BIN)/tritonlive serve $(ARGS)

.PHONY: test
test: $(STAMP)  ## Run the whole test suite on the CPU (ARGS="-k name" for some)
	@exec $(BIN)/python -m pytest -m "not gpu" $(ARGS)

.PHONY: test-faults
test-faults: $(STAMP)  ## Run the tests that make faults happen
	@exec $(BIN)/python -m pytest -m "fault and not gpu" $(ARGS)

.PHONY: lint
lint: $(STAMP)  ## Lint and check the format
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/hadolint Dockerfile

.PHONY: format
format: $(STAMP)  ## Format, and fix what the linter can fix
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

.PHONY: typecheck
typecheck: $(STAMP)  ## Check the types
	$(BIN)/ty check

.PHONY: bench
bench: $(STAMP)  ## Measure beside vLLM's own server; figures go to bench/results
	@exec $(BIN)/python -m bench $(ARGS)

.PHONY: bench-quick
bench-quick: $(STAMP)  ## The same with fewer loads and repeats
	@exec $(BIN)/python -m bench --quick $(ARGS)

.PHONY: parity
parity: $(STAMP)  ## Compare the answers with those of vLLM's own server
	@exec $(BIN)/python -m bench.parity $(ARGS)

.PHONY: lock
lock: $(STAMP)  ## Resolve requirements/*.in again into the exact locks
	@$(BIN)/python requirements/lock.py

.PHONY: clean
clean:  ## Remove the virtual environment and everything built here (not the model cache)
	rm -rf $(VENV) .build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: docs
docs: $(STAMP)  ## Build the documentation into site/; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
