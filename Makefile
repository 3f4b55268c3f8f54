# Two commands on a fresh machine: `make quickstart` and `make test`. Everything goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The lock file names every package, so pip need not resolve anything (--no-deps).
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-deps

.DEFAULT_GOAL := help
.PHONY: help setup setup-test quickstart test test-slow test-all test-tutorials test-originals test-oldest test-newest lint types docs lock clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.setup  ## Make .venv: PyTorch, the OpenMMLab packages and this one, all pinned
setup-test: $(VENV)/.setup-test  ## The same, plus MMDetection, MMSegmentation, pytest, ruff and mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.setup: requirements/lock.txt pyproject.toml setup.py | $(VENV)/bin/python
	$(PIP_INSTALL) -r requirements/lock.txt
	$(PIP_INSTALL) --no-build-isolation -e .
	@touch $@

# MMDetection needs MMCV's operators, from a wheel in PIP_FIND_LINKS or compiled here. Without a compiler, everything but
# MMDetection works.
$(VENV)/.setup-test: requirements/lock-test.txt $(VENV)/.setup
	$(PIP_INSTALL) -r requirements/lock-test.txt
	@if $(BIN)/python -c 'import mmcv.ops' 2>/dev/null; then :; \
	elif command -v $(CXX) >/dev/null; then \
		echo 'Compiling the operators of MMCV, once: 15 to 22 minutes on two cores'; \
		$(PIP_INSTALL) --no-build-isolation --no-cache-dir --force-reinstall $$(grep '^onedl-mmcv==' requirements/lock.txt); \
	else echo 'No C++ compiler ($(CXX)), so no operators of MMCV: tests of detection are skipped. With one: make clean setup-test'; fi
	@touch $@

quickstart: setup  ## Pretrain a small ViT on photos inside wheels: a checkpoint and a picture in minutes
	$(BIN)/python tools/train.py configs/quickstart.py $(if $(OPTIONS),--cfg-options $(OPTIONS))

# Two at a time with one thread each: most tests start processes and train tiny models.
PARALLEL = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n 2 --dist worksteal
test: setup-test  ## The tests to wait for: everything but those marked slow
	$(call PARALLEL,$(VENV)) tests -m 'not slow'

test-slow: setup-test  ## The others
	$(call PARALLEL,$(VENV)) tests -m slow

test-all: test test-slow  ## All tests

test-tutorials: setup-test  ## The tutorials as printed; the slow tests run them with fewer epochs
	AS_PRINTED=1 $(call PARALLEL,$(VENV)) tests/end_to_end/test_tutorials.py

# What is imported is compiled then; all of it would take half a minute for each environment.
PIP_TESTS = bin/python -m pip install --disable-pip-version-check --no-deps --no-compile
# The frozen originals (mmengine 0.10.7 ...) instead of the maintained forks, in an environment of their own.
ORIGINALS := .venv-originals
# Only the files that have the marker: others import what these environments lack.
CORE = $(shell grep -rl --include='test_*.py' 'mark\.core' tests)
PYTEST = '^(pytest|pytest-timeout|pytest-xdist|execnet|iniconfig|pluggy|hypothesis|sortedcontainers)=='
$(ORIGINALS)/.setup: requirements/lock.txt requirements/lock-test.txt requirements/originals.txt | $(VENV)/bin/python
	$(PYTHON) -m venv $(ORIGINALS) || { rm -rf $(ORIGINALS); exit 1; }
	(grep -v '^onedl-' requirements/lock.txt; grep -E $(PYTEST) requirements/lock-test.txt) > $(ORIGINALS)/lock.txt
	$(ORIGINALS)/$(PIP_TESTS) -r $(ORIGINALS)/lock.txt
	$(ORIGINALS)/$(PIP_TESTS) --no-build-isolation \
		-r requirements/originals.txt -e .
	@touch $@

test-originals: $(ORIGINALS)/.setup  ## The core tests with the frozen originals of the OpenMMLab packages
	$(call PARALLEL,$(ORIGINALS)) -m core $(CORE)

# The oldest versions that pyproject.toml allows, and the newest at the time of `make lock`, each in an environment of
# its own, without MMCV's operators (built apart from PyTorch, MMCV leaves them out).
OLDEST := .venv-oldest
NEWEST := .venv-newest
$(OLDEST)/.setup $(NEWEST)/.setup: .venv-%/.setup: requirements/%.txt requirements/lock-test.txt | $(VENV)/bin/python
	$(PYTHON) -m venv $(@D) || { rm -rf $(@D); exit 1; }
	(cat $<; grep -E $(PYTEST) requirements/lock-test.txt) > $(@D)/lock.txt
	$(@D)/$(PIP_TESTS) --no-binary onedl-mmcv -r $(@D)/lock.txt
	$(@D)/$(PIP_TESTS) --no-build-isolation -e .
	@touch $@

test-oldest: $(OLDEST)/.setup  ## The core tests with the oldest versions that pyproject.toml admits
	$(call PARALLEL,$(OLDEST)) -m 'core and not slow' $(CORE)

test-newest: $(NEWEST)/.setup  ## The core tests with the newest versions of everything
	$(call PARALLEL,$(NEWEST)) -m 'core and not slow' $(CORE)

lint: setup-test  ## ruff; codespell and words to avoid; import-linter: which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@! grep -rnE '^ *(from|import) (test_|end_to_end)' tests --include=*.py || { echo 'tests do not import each other; shared code is in tests/helpers'; exit 1; }
	$(BIN)/codespell -D - -D .codespell-words.txt
	$(BIN)/lint-imports --no-cache

types: setup-test  ## mypy
	$(BIN)/mypy simmim_plugin tools tests

$(VENV)/.setup-docs: requirements/lock-docs.txt $(VENV)/.setup-test
	$(PIP_INSTALL) -r requirements/lock-docs.txt
	@touch $@

docs: $(VENV)/.setup-docs  ## The documentation as a site: build/docs/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

# Universal locks (Python 3.10 and up). Two necessary changes to the resolver's result:
#   torch===X selects PyPI's build where a local `X+cpu` wheel also matches (torchvision does not load with that);
#   opencv-python-headless replaces opencv-python, which needs libGL.
UV_COMPILE = $(BIN)/uv pip compile pyproject.toml -c requirements/pins.txt --universal --python-version 3.10 \
	--no-annotate --no-header --quiet
lock: | $(VENV)/bin/python  ## Rewrite the lock files
	$(BIN)/python -m pip install --disable-pip-version-check uv
	$(UV_COMPILE) --extra mm --extra photos -o requirements/lock.txt
	$(UV_COMPILE) --extra mm --extra photos --extra det --extra seg --extra hf --extra parquet --extra onnx --extra demo \
		--extra dev -c requirements/lock.txt \
		-o requirements/lock-test.txt
	sed -i -E -e 's/^torch==/torch===/' -e 's/^opencv-python==/opencv-python-headless==/' \
		requirements/lock.txt requirements/lock-test.txt
	grep -vxFf requirements/lock.txt requirements/lock-test.txt | sort -u > requirements/lock-test.tmp
	mv requirements/lock-test.tmp requirements/lock-test.txt
	$(BIN)/uv pip compile pyproject.toml -c requirements/pins.txt -c requirements/lock.txt -c requirements/lock-test.txt --extra docs \
		--universal --python-version 3.11 --no-annotate --no-header --quiet -o requirements/lock-docs.tmp
	sed -E 's/[=; ].*//' requirements/lock.txt requirements/lock-test.txt | sed 's/.*/^&==/' \
		| grep -vf - requirements/lock-docs.tmp > requirements/lock-docs.txt
	rm requirements/lock-docs.tmp
	$(subst -c requirements/pins.txt,,$(UV_COMPILE)) --extra mm --extra photos --resolution lowest-direct -o requirements/oldest.txt
	$(subst -c requirements/pins.txt,,$(UV_COMPILE)) --extra mm --extra photos -o requirements/newest.txt

clean:  ## Remove the environment and caches
	rm -rf $(VENV) $(ORIGINALS) $(OLDEST) $(NEWEST) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
