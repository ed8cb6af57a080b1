# Targets that need the environment make it first. Another interpreter: make setup PYTHON=python3.12
# More arguments for pytest: make test ARGS="-k planner"

PYTHON ?= python3
WORKERS ?= 2# processes that run the tests side by side
EXTRAS ?=# more optional packages of pyproject.toml: make setup EXTRAS=envs adds all families of environments
PY := .venv/bin/python
STAMP := .venv/.installed$(if $(EXTRAS),-$(EXTRAS))
MYOSUITE := docker/myosuite.txt
comma := ,
TOO_OLD := import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, \
	$(PYTHON) is %d.%d: name another one, for example make setup PYTHON=python3.11" % v[:2])

.PHONY: help setup test test-slow test-all lint format type demo bench fuzz crash clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt $(MYOSUITE)
	@test -x .venv/bin/pip || { $(PYTHON) -c '$(TOO_OLD)' && $(PYTHON) -m venv .venv; }
	$(PY) -m pip install -c constraints.txt -e '.[dev$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	$(if $(findstring envs,$(EXTRAS)),$(PY) -m pip install --no-deps -r $(MYOSUITE))
	@touch $@

test: setup ## run the tests, without the slow ones
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

test-slow: setup ## run the slow tests
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m slow $(ARGS)

test-all: setup ## run all of them, those files first that take long
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --slow-files-first $(ARGS)

lint: setup ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup ## rewrite the files in the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

type: setup ## check types
	$(PY) -m mypy

demo: setup ## collect, train a teacher, distil a student, evaluate, quantise
	$(PY) examples/demo.py

bench: setup ## run every benchmark, or some, or at length: make bench ARGS="plan update --full"
	$(PY) -m benchmarks $(ARGS)

fuzz: setup ## try damaged files and careless command lines: make fuzz ARGS="--minutes 60 --seed 1"
	$(PY) -m tests.fuzz $(ARGS)

crash: setup ## kill commands at random moments and on full disks: make crash ARGS="--kills 100 --seed 1"
	$(PY) -m tests.crash $(ARGS)

clean: ## remove caches and build products; .venv, data, logs and models stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
