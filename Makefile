# The checks that every commit must pass. `scripts/test` installs everything and runs all tests.
VENV ?= .venv
BIN := $(VENV)/bin

# Tests start many processes: without compiled files, each of them would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: check docs format lint types unit

check: lint types unit

format:
	$(BIN)/ruff format pipeline tests scripts
	$(BIN)/ruff check --fix pipeline tests scripts

lint:
	$(BIN)/ruff format --check pipeline tests scripts
	$(BIN)/ruff check pipeline tests scripts

types:
	$(BIN)/mypy

unit:
	$(BIN)/python -m pytest -q --numprocesses 2 -m "not model and not e2e and not slow"

# Builds the documentation, serves it on http://127.0.0.1:8090 and opens it where there is a browser.
docs:
	scripts/setup cpu gguf dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict --livereload --open
