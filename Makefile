# Everything a newcomer needs: make demo, make test. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: dev lint reformat test test-slow mutate vectors fuzz bench demo doc clean

# Exact versions of everything, so that two machines get the same environment.
$(STAMP): pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --editable '.[dev]'
	touch $(STAMP)

dev: $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/interrogate --quiet bentoml_secure

reformat: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two processes: one runs the tests that start services, the other attacks and the rest.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadscope --cov --cov-report=term --cov-fail-under=95

# Models over 2 GB, long fuzzing, every size: minutes each.
test-slow: $(STAMP)
	$(BIN)/python -m pytest --slow -m slow

# Disables each named check in turn; a test must notice.
mutate: $(STAMP)
	$(BIN)/python -m tests.mutation

# Real evidence from where it was published, for who lacks it; its digests are kept.
vectors: $(STAMP)
	$(BIN)/python -m tests.vectors.fetch

# Each parser of outside bytes for a while, coverage-guided.
fuzz: $(STAMP)
	$(BIN)/python -m fuzz

bench: $(STAMP)
	$(BIN)/python -m benchmarks

demo: $(STAMP)
	$(BIN)/python -m examples.diagnosis.demo

doc: $(STAMP)
	$(BIN)/python -m pytest -q tests/test_readme_help.py tests/test_readme.py tests/test_examples.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .demo models
