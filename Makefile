# Every target sets itself up; only python3 (3.11 or newer) and make are needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = $(BIN)/python -m

.PHONY: demo test test-slow lint bench clean

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -U pip
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -e ".[export,onnx,torch,faces,bench,dev]"
	touch $@

.typecheck/vitrify:
	mkdir -p .typecheck && ln -sfn .. .typecheck/vitrify

test: $(VENV)/.ready
	$(RUN) pytest -m "not slow and not optimum"

test-slow: $(VENV)/.ready
	$(RUN) pytest -m slow

lint: $(VENV)/.ready .typecheck/vitrify
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	MYPYPATH=.typecheck $(RUN) mypy -p vitrify
	PYTHONPATH=.typecheck $(BIN)/lint-imports

clean:
	rm -rf $(VENV) .typecheck build *.egg-info
