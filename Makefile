# make demo | make test | make lint: each makes the environment first when it is missing or out of date.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c "import sys; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1 && echo $$p && break; done)
BIN = .venv/bin
JOBS ?= 2

.PHONY: demo test test-long lint clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

.venv: .venv/.installed

demo: .venv/.installed
	$(BIN)/medloom demo
	$(BIN)/medloom demo --kind volumes

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-long: .venv/.installed
	$(BIN)/python -m pytest -m long

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
