# The two commands of a new user are `make demo` and `make test`; both make .venv first.

PYTHON ?= python3
VENV := .venv
RDM := $(VENV)/bin/rdm
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint docs bench bench-gpu clean

demo: $(VENV)/.core  ## post-train a one-step generator on the digits; table and report
	$(RDM) demo

test: $(VENV)/.test  ## the whole CPU suite, slow tests included
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -m "not gpu" --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
		--max-worker-restart 0

lint: $(VENV)/.test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/codespell
	$(VENV)/bin/pyright

docs: $(VENV)/.docs  ## the site, in build/docs/index.html
	$(VENV)/bin/python -m sphinx --fail-on-warning --nitpicky --quiet -b html -c docs . build/docs
	@echo build/docs/index.html

bench: $(VENV)/.test  ## times beside peers, with accuracy and peak memory
	$(VENV)/bin/python -m benchmarks

bench-gpu: $(VENV)/.test
	$(VENV)/bin/python -m benchmarks --device cuda

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing rdm into $(VENV) (about a minute)"
	$(PIP) --editable '.[report]'
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "installing what the tests need"
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	@echo "installing what the site needs"
	$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) runs build dist docs/generated *.egg-info
