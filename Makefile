# `make quickstart` and `make test` need nothing but Python 3.11 or newer. PYTHON=python3.12 chooses one.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint

quickstart: .venv/installed
	$(BIN)/python -m pretrain.study --config=configs/quickstart.py --workdir=runs/quickstart

test: .venv/installed lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@
