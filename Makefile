# One command per habit. `make quickstart` and `make test` set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# URL of a package index with CPU builds of torch (see README, "A smaller install"); empty: the default index.
TORCH_INDEX ?=
PIP_OPTIONS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
INSTALLED := $(VENV)/.installed

# Tests run in as many processes as there are cores, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: install quickstart test test-slow test-gpu test-faults test-services test-containers bench check format compile images \
	lock audit clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 20

install: $(INSTALLED) ## make .venv with everything a laptop needs

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ralm needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e '.[cpu,kfp,local,dev]'
	@touch $@

quickstart: install ## run the whole pipeline on a real Wikipedia slice, then ask it questions
	$(BIN)/ralm quickstart

test: install ## unit, oracle, contract and graph tests (about 5 minutes on 2 cores)
	$(PYTEST)

test-slow: install ## long tests: real models, whole dumps, kill and resume
	$(PYTEST) -m slow

test-gpu: install ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-faults: install ## kill -9 at 20 random moments of a re-index (7 minutes on 2 cores)
	$(BIN)/python -m pytest -m faults
	$(BIN)/python tests/faults/reindex_faults.py

test-services: install ## two pipelines at once on MLflow with PostgreSQL and S3 (4 minutes on 2 cores)
	$(BIN)/python -m pytest -m services -rs

test-containers: install ## images from Debian's packages and PyPI alone, and the quickstart in containers
	tests/containers/run.sh --quickstart

bench: install ## all benchmarks of a CPU beside their peers, goals and figures in a table (30 to 45 minutes on 2 cores, an hour without bf16)
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

check: install ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy ralm components pipelines benchmarks

format: install ## apply formatting and safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

compile: install ## write pipelines/compiled/*.yaml
	$(BIN)/ralm pipeline compile

images: ## build the images base and cpu (others: docker/build.sh gpu mlflow)
	docker/build.sh base cpu

lock: ## write docker/lock/*.txt: what the images install
	docker/lock.sh

audit: ## ask for known vulnerabilities of what the images install
	docker/audit.sh

clean: ## remove .venv and caches of tools; the store in RALM_HOME stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
