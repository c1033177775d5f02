# Two commands set everything up and show it: `make demo` and `make test`.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
SOURCES := clustermesh apiserver nodeagent
CHECKED := $(SOURCES) tests
# Most tests wait for processes that they have started: more of them than processors may run at a time.
TEST_PROCESSES ?= 3

.PHONY: help
help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

.PHONY: demo
demo: setup ## Two clusters on this machine become one (root; KEEP=1 leaves them up)
	@$(BIN)/clustermesh testbed demo $(if $(KEEP),--keep)

.PHONY: test
test: lint ## All checks and tests (system tests need root)
	@$(BIN)/pytest --numprocesses $(TEST_PROCESSES) $(PYTEST_ARGS)

.PHONY: bench
bench: setup ## Measure datapath and control plane, as ratios of one run (root)
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)

.PHONY: lint
lint: setup ## ruff, mypy, import arrows, clang-format
	@$(BIN)/ruff check $(CHECKED)
	@$(BIN)/ruff format --check $(CHECKED)
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@find bpf tests -name '*.[ch]' -print0 | xargs -0 -r $(BIN)/clang-format --dry-run --Werror

.PHONY: format
format: setup ## Format everything as lint wants it
	@$(BIN)/ruff check --fix --quiet $(CHECKED)
	@$(BIN)/ruff format $(CHECKED)
	@find bpf tests -name '*.[ch]' -print0 | xargs -0 -r $(BIN)/clang-format -i

.PHONY: setup
setup: packages .venv/.installed bpf ## Debian packages, virtual environment, BPF objects

.PHONY: packages
packages:
	@deploy/debian-packages.sh

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || \
		{ echo "No virtual environment could be made: install the package python3-venv" >&2; exit 1; }
	@echo "Installing Python packages" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[testbed,dev]' || \
		{ echo "pip could not install the packages: is the package index reachable?" >&2; exit 1; }
	@touch $@

.PHONY: bpf
bpf: ## Compile the BPF programs
	@$(MAKE) -C bpf

.PHONY: proto
proto: setup ## Regenerate the stubs of etcd's client and of endpoint slices
	@$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. clustermesh/kvstore/rpc/*.proto
	@$(BIN)/python -m grpc_tools.protoc -I . --python_out=. clustermesh/wire/protobuf/*.proto

.PHONY: clean
clean: ## Remove what make built (not a running testbed: clustermesh testbed down --all)
	@$(MAKE) -C bpf clean
	@rm -rf .venv build dist bench-results *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
