# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` set themselves up in .venv; nothing else is needed than Python 3.10 to 3.13.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= out

.PHONY: demo test test-aarch64 lint docs setup clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/python examples/demo.py --output $(OUT)

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# an emulated board: qemu, Debian's Python for arm64 and the wheels for it, in a folder of $(VENV); says so where they are
# not to be had
AARCH64 := $(abspath $(VENV))/aarch64
test-aarch64: $(READY)
	$(BIN)/python tests/boards/aarch64_machine.py $(AARCH64)
	if [ -e $(AARCH64)/ready ]; then AARCH64_MACHINE=$(AARCH64) $(BIN)/python -m pytest -m aarch64 tests/boards; fi

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(OUT) site build dist .pytest_cache .mypy_cache .ruff_cache
