# Targets that need the environment make it first. Another interpreter: make setup PYTHON=python3.12
# More arguments for pytest: make test ARGS="-k planner"

PYTHON ?= python3
WORKERS ?= 2# processes that run the tests side by side
EXTRAS ?=# more optional packages of pyproject.toml: make setup EXTRAS=envs adds all families of environments
PY := .venv/bin/python
OLDEST := .venv-oldest
STAMP := .venv/.installed$(if $(EXTRAS),-$(EXTRAS))
MYOSUITE := docker/myosuite.txt
comma := ,
TOO_OLD := import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, \
	$(PYTHON) is %d.%d: name another one, for example make setup PYTHON=python3.11" % v[:2])

ARM ?= aarch64-linux-gnu-g++# compiler of the wheel for aarch64
KERNELS := tdmpc2/acceleration/cpu
LIBRARY := $(KERNELS)/kernels.so

.PHONY: help setup test test-slow test-all test-oldest lint format type docs docs-serve wheels demo bench gpu fuzz crash soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) $(LIBRARY) ## make .venv with the versions of constraints.txt, and the CPU kernels

$(STAMP): pyproject.toml constraints.txt $(MYOSUITE)
	@test -x .venv/bin/pip || { $(PYTHON) -c '$(TOO_OLD)' && $(PYTHON) -m venv .venv; }
	$(PY) -m pip install -c constraints.txt -e '.[dev$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	$(if $(findstring envs,$(EXTRAS)),$(PY) -m pip install --no-deps -r $(MYOSUITE))
	@touch .venv/.installed $@ # more packages than asked for will do for the targets that ask for none

$(LIBRARY): $(wildcard $(KERNELS)/*.h $(KERNELS)/*.cpp) $(KERNELS)/build.py | $(STAMP)
	-$(PY) $(KERNELS)/build.py # without a compiler everything works, and plans more slowly

test: setup ## run the tests, without the slow ones
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

test-slow: setup ## run the slow tests
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m slow $(ARGS)

test-all: setup ## run all of them, those files first that take long
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --slow-files-first $(ARGS)

# Torch's oldest version comes from PyPI with CUDA libraries, 3 GB; 'make test-oldest WORKERS=4' uses more processes.
test-oldest: ## run the tests in .venv-oldest, with the lowest versions that pyproject.toml allows
	@test -x $(OLDEST)/bin/pip || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -c $(OLDEST)/constraints.txt -e '.[dev]'
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

lint: setup ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup ## rewrite the files in the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

type: setup ## check types
	$(PY) -m mypy

docs: setup ## build the documentation site into build/site/html; a broken link fails
	$(PY) docs/build_site.py build

docs-serve: setup ## build the site and show it at http://localhost:8000
	$(PY) docs/build_site.py serve

# From the source archive, which so is known to be whole. setup.py names each wheel by the oldest glibc it runs on.
WHEEL := $(PY) -m pip wheel -q --no-deps --no-build-isolation -w dist
wheels: setup ## make dist/: the sources, a wheel for this processor, and one for aarch64 if its compiler is installed
	rm -rf dist
	$(PY) -c 'import setuptools.build_meta as build; build.build_sdist("dist", {"--global-option": "-q"})'
	$(WHEEL) dist/*.tar.gz
	$(if $(shell command -v $(ARM)),CXX=$(ARM) $(WHEEL) dist/*.tar.gz,@echo "$(ARM) is not installed: no wheel for aarch64")
	@ls -l dist

demo: setup ## collect, train a teacher, distil a student, evaluate, quantise
	$(PY) examples/demo.py

bench: setup ## run the usual benchmarks, or some, or at length: make bench ARGS="plan update --full"
	$(PY) -m benchmarks $(ARGS)

# On a machine without a CUDA GPU it says so and fails. Specialists go on where they were: call it again.
gpu: setup ## test and measure everything on a CUDA GPU; make gpu ARGS="--minutes 30" then teaches 30 specialists
	$(PY) -m benchmarks._gpu $(ARGS)

fuzz: setup ## try damaged files and careless command lines: make fuzz ARGS="--minutes 60 --seed 1"
	$(PY) -m tests.fuzz $(ARGS)

crash: setup ## kill commands at random moments and on full disks: make crash ARGS="--kills 100 --seed 1"
	$(PY) -m tests.crash $(ARGS)

soak: setup ## train for hours and watch memory and open files: make soak ARGS="offline --minutes 120 --figure memory.png"
	$(PY) -m tests.soak $(ARGS)

clean: ## remove caches and build products; .venv, data, logs and models stay
	rm -rf build dist *.egg-info $(LIBRARY) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
