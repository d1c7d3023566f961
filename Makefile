# Everything runs in .venv, which the first target sets up from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo up test soak soak-projector chaos lint format bench docs lock clean
.DEFAULT_GOAL := help

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(READY) ## run the research agent on a sample feed, from nothing, and show what it did
	@$(BIN)/python examples/research/demo.py

up: $(READY) ## start everything on this machine, with the agents of examples/research
	@$(BIN)/stratum --config examples/research/stratum.toml up

test: $(READY) ## run the tests (5 minutes on 2 fast cores, 12 on slow ones)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

soak: $(READY) ## kill processes at random moments for longer: MESSAGES=200000 KILLS=200 SEED=1
	$(BIN)/python tests/flow/crash.py --messages $(or $(MESSAGES),200000) --kills $(or $(KILLS),200) --seed $(or $(SEED),1)

soak-projector: $(READY) ## kill the projector at random moments, and compare its tables: KILLS=1000 SEED=1
	$(BIN)/python -m tests.flow.projector --kills $(or $(KILLS),1000) --seed $(or $(SEED),1)

chaos: $(READY) ## every fault in random order under load, with a proof from the log: DURATION=1800 SEED=1
	$(BIN)/python tests/chaos/chaos.py --duration $(or $(DURATION),1800) --seed $(or $(SEED),1)

lint: $(READY) ## ruff and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY) ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY) ## measure, one JSON object a line: ONLY=publish for one of them
	@$(BIN)/python -m bench $(ONLY)

docs: $(READY) ## write docs/cli.md anew from --help, and docs/contract from the event types
	$(BIN)/python -m stratum_cli.reference > docs/cli.md
	$(BIN)/stratum contract jsonschema --shipped -o docs/contract
	$(BIN)/stratum contract asyncapi --shipped -o docs/contract
	$(BIN)/stratum contract subjects --shipped -o docs/contract

lock: $(READY) ## resolve the dependencies anew
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-emit-index-url --no-header --quiet -o requirements.lock

clean: ## remove what these targets made
	rm -rf $(VENV) .stratum examples/research/.stratum .mypy_cache .ruff_cache .pytest_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Stratum needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
