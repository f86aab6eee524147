# The two commands: `make run` and `make test`. Both make the environment in .venv when it is not there yet.
#
#   make run                      synthetic demo cohort, notebooks 01 to 06, results in runs/demo
#   make run DATA=/path/to/folder the same on a folder with the competition's files, results in runs/<its name>
#   make test                     all tests
#   make kaggle RUN=runs/demo     dist/kaggle: library, wheels and weights as a data set, notebooks as kernels, to push
#   make kaggle-rehearsal         notebook 05 on an imitated Kaggle, offline, with such a data set alone
#   make test-kaggle              tests with the versions of Kaggle's image, in .venv-kaggle (Python 3.12)
#   make weights                  remake the networks that ship with the library, two to three hours on two cores
#   make lint | format | images | notebooks | clean
#
# PYTHON=/path/to/python picks the interpreter (3.11 or 3.12), VENV=folder the environment's place, JOBS=n the number
# of test processes, ARGS="-k crops" goes to pytest, REQUIREMENTS=file what the environment is made of.

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?=
REQUIREMENTS ?= requirements.txt
DATA ?=
RUN ?=
JOBS ?= 2
PY = $(VENV)/bin/python
STAMP = $(VENV)/.installed

# Small tensors: one thread a process and JOBS processes beat two threads in one. A file's tests stay on one process,
# because they share what they trained.
TEST_ENV = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help run test test-kaggle lint format images notebooks kaggle kaggle-rehearsal weights clean environment

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

run: $(STAMP)  ## data, notebooks 01 to 06, results in runs/ (DATA=folder: on real data)
	@$(PY) tools/run_notebooks.py --data "$(DATA)" --run "$(RUN)"

test: $(STAMP)  ## all tests
	@$(TEST_ENV) $(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: $(STAMP)  ## ruff, code and notebooks
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

format: $(STAMP)  ## ruff with fixes, and formatting
	@$(PY) -m ruff check --fix . && $(PY) -m ruff format .

images: $(STAMP)  ## the README's pictures, from phantoms
	@$(PY) tools/make_images.py

notebooks: $(STAMP)  ## copy the executed notebooks of runs/demo into notebooks/, ready to commit
	@$(PY) tools/publish_notebooks.py

kaggle: $(STAMP)  ## dist/kaggle: data set and notebooks to push (RUN=runs/demo: with its weights; OWNER=your name on Kaggle)
	@$(PY) -m lumbar_utils kaggle build dist/kaggle $(if $(RUN),--run "$(RUN)") --owner "$(or $(OWNER),OWNER)"

kaggle-rehearsal: $(STAMP)  ## notebook 05 on an imitated Kaggle without network, weights of RUN (default runs/demo)
	@$(PY) tools/kaggle_rehearsal.py --run "$(or $(RUN),runs/demo)" $(ARGS)

test-kaggle:  ## the tests with Kaggle's versions (requirements-kaggle.txt) in .venv-kaggle
	@$(MAKE) test VENV=.venv-kaggle PYTHON="$(or $(PYTHON),python3.12)" REQUIREMENTS=requirements-kaggle.txt

weights: $(STAMP)  ## the networks that ship with the library, from phantoms alone
	@$(PY) tools/make_localizer.py
	@$(PY) tools/make_targets.py
	@$(PY) tools/make_classifier.py

environment: $(STAMP)  ## only make .venv

$(STAMP): $(REQUIREMENTS) setup.py
	@bash tools/make_environment.sh "$(VENV)" "$(PYTHON)" "$(REQUIREMENTS)"

clean:  ## remove what was built: environment, caches, runs
	rm -rf "$(VENV)" .venv-kaggle runs build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
