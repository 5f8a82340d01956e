# The commands of a working day. `make` alone lists them.
#
# A fresh machine needs make and Python 3.11 or later; everything else is put into .venv, and `make test` asks
# tests/setup.sh for the servers that the tests start (it installs them when it is root, else says what is missing).

VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-for-development
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Passed to pytest: make test ARGS="-k rotation -x"
ARGS :=
# Tests that run at a time: many of them wait, for a server, a rotation or a deadline.
WORKERS := 4
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# The oldest and the newest that pyproject.toml names; compiled forms are tested with both.
PYTHONS := 3.11 3.15
SECONDS := 3600
SEED :=
# Where compiled forms have Python twins, without what takes long and is the same in both forms.
TWINS := -m "not slow and not mariadb and not docker" -k "not test_limits and not cluster and not kill" \
	tests/parse tests/sources tests/sinks

.DEFAULT_GOAL := help
.PHONY: help demo test soak check bench docs format clean install uninstall

help: ## List these commands.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(BASE) ## Ship the sample logs into an SQLite database and show them, within a minute.
	@$(BIN)/shipper demo

test: $(DEVELOPMENT) ## Run every test, with a real MariaDB and a real Docker engine; then what has two forms, in pure Python.
	@sh tests/setup.sh
	$(PYTEST) $(ARGS)
	$(if $(ARGS),,@sh tests/pythons.sh $(BIN)/python $(PYTHONS))
	$(if $(ARGS),,SHIPPER_PURE=1 $(PYTEST) $(TWINS))

soak: $(DEVELOPMENT) ## Random faults against a real daemon for an hour: SECONDS=600 for less, SEED=n to repeat them.
	PYTHONPATH=tests $(BIN)/python -m support.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

check: $(DEVELOPMENT) ## Formatting, lint, types, import rules, project rules, generated docs in step.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m "not slow" tests/project
	$(BIN)/python -m shipper.docgen.reference --check
	$(BIN)/python -m shipper.docgen.manual --check

bench: $(DEVELOPMENT) ## Measure every figure of the budget, next to its budget.
	$(BIN)/python benchmarks/run.py $(ARGS)

docs: $(BASE) ## Write docs/reference/ and man/ anew from the code.
	$(BIN)/python -m shipper.docgen.reference
	$(BIN)/python -m shipper.docgen.manual

format: $(DEVELOPMENT) ## Format the code and mend what can be mended.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: ## Install the program and its systemd service; DESTDIR, PREFIX, EXTRAS and PYTHON are honoured.
	@sh systemd/install.sh install

uninstall: ## Remove what install installed; keep what was changed since, and the state.
	@sh systemd/install.sh uninstall

clean: ## Remove .venv, caches and build results.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
	rm -rf benchmarks/data shipper/native/*.so
	find shipper sinks tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@sh tests/setup.sh venv $(VENV)

# The stamps are newer than what is built and what asks for packages exactly when all of it is installed.
BUILT_OF := pyproject.toml hatch_build.py $(wildcard shipper/native/*.[ch])

$(BASE): $(BUILT_OF) | $(BIN)/python
	@sh tests/setup.sh compiler $(BIN)/python
	$(PIP) --editable '.[mysql]'
	@$(BIN)/shipper --version
	@touch $@

$(DEVELOPMENT): $(BUILT_OF) | $(BIN)/python
	@sh tests/setup.sh compiler $(BIN)/python
	$(PIP) --editable '.[all,test,check]'
	@$(BIN)/shipper --version
	@touch $(BASE) $@
