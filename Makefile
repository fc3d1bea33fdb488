# The first use of a target builds .venv from the exact lock. Later uses only check that it is current.
# ARGS is passed through: make serve ARGS="--model Qwen/Qwen3-0.6B --port 9100"

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
ARGS ?=
# Any Python from 3.8 runs the bootstrap, which finds a suitable one. PYTHON=/path selects one.
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

# Unit tests use all cores. Tests of stacks use two processes, each with up to three stacks of about 2.5 GiB.
PYTEST := $(BIN)/python -m pytest
STACKS := -n 2 --dist loadgroup

.PHONY: test
test: $(STAMP)  ## Run all tests on the CPU except test-matrix and slow faults (ARGS="-k name" for some)
	@exec $(PYTEST) $(STACKS) -m "not gpu and not matrix and not property and not slow" $(ARGS)

.PHONY: test-unit
test-unit: $(STAMP)  ## Run the tests that start neither Triton nor an engine
	@exec $(PYTEST) -n logical --dist worksteal -m "not stack and not property" $(ARGS)

.PHONY: test-matrix
test-matrix: $(STAMP)  ## Run the tests of parallel engines, of kinds of models, and of random sequences
	@exec $(PYTEST) $(STACKS) -m "matrix or property" $(ARGS)

.PHONY: test-faults
test-faults: $(STAMP)  ## Run the tests that inject faults, except those of test-matrix
	@exec $(PYTEST) $(STACKS) -m "fault and not gpu and not matrix" $(ARGS)

.PHONY: test-faults-quick
test-faults-quick: $(STAMP)  ## The same without those that start stacks of their own
	@exec $(PYTEST) $(STACKS) -m "fault and not gpu and not own_stack" $(ARGS)

.PHONY: test-soak
test-soak: $(STAMP)  ## Half an hour of mixed load, pushes and kills (ARGS="--minutes 3 --kill engine")
	@exec $(BIN)/python -m bench.soak $(ARGS)

.PHONY: lint
lint: $(STAMP)  ## Lint, check the format and the imports between packages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

.PHONY: format
format: $(STAMP)  ## Format, and apply the linter's fixes
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

.PHONY: typecheck
typecheck: $(STAMP)  ## Check the types
	$(BIN)/ty check

.PHONY: bench
bench: $(STAMP)  ## Measure beside vLLM's own server, then all front ends (without ARGS); writes bench/results
	@status=0; $(BIN)/python -m bench $(ARGS) || status=$$?; \
	$(if $(ARGS),,$(BIN)/python -m bench.front_ends --quick || status=$$?;) exit $$status

.PHONY: bench-quick
bench-quick: $(STAMP)  ## The same with fewer loads and repeats
	@exec $(BIN)/python -m bench --quick $(ARGS)

.PHONY: parity
parity: $(STAMP)  ## Compare the answers with those of vLLM's own server
	@exec $(BIN)/python -m bench.parity $(ARGS)

.PHONY: lock
lock: $(STAMP)  ## Resolve requirements/*.in again into the exact locks
	@$(BIN)/python -m requirements.lock

.PHONY: wheel
wheel: $(STAMP)  ## Build the wheel into dist/, with the CPU's lock beside it
	@rm -rf build dist *.egg-info  # setuptools would add files of an earlier build to the wheel
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist . >.build/wheel.log 2>&1 || { cat .build/wheel.log >&2; exit 1; }
	@rm -rf build
	@cp requirements/cpu.txt dist/cpu.txt
	@wheel=$$(echo dist/*.whl); printf '%s\n' \
	  "$$wheel" \
	  "trainer:        pip install $$wheel" \
	  "server, GPU:    pip install '$$wheel[server]'" \
	  "server, CPU:    pip install --no-deps -r dist/cpu.txt $$wheel"

.PHONY: clean
clean:  ## Remove the virtual environment and all build outputs, but not the model cache
	rm -rf $(VENV) .build build dist site .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: docs
docs: $(STAMP)  ## Build the documentation into site/; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
