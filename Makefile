# `make help` lists the targets. Needs Python 3.11 or newer and make; nothing else.
PYTHON ?= python3
export PIP_DISABLE_PIP_VERSION_CHECK = 1
STAMP := .venv/.installed
# Tests wait as often as they compute: three processes keep two cores busy.
TEST_PROCESSES ?= 3
BENCH := benchmarks/.venv
# Of the machine that gpu-bundle packs for.
GPU_PYTHON ?= 3.12

.PHONY: help setup demo test nightly up client check bench bench-api bench-latency gpu-bundle
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(STAMP) ## the environment .venv alone

demo: $(STAMP) ## a whole meta-training job on real data: stores, API, worker, submit, download, verify, clean up
	@exec .venv/bin/python examples/demo.py

test: $(STAMP) ## the suite that every change passes, on a real PostgreSQL and a real Valkey that it starts and stops
	@exec .venv/bin/python -m pytest -n $(TEST_PROCESSES)

nightly: $(STAMP) ## what takes longer: every process test with real trainers, kills for every method, the long soak, fuzzing, sanitizers
	@AMAML_TEST_REAL_TRAINERS=1 exec .venv/bin/python -m pytest -n $(TEST_PROCESSES) -m 'nightly or processes'

up: $(STAMP) ## the service in the foreground until Ctrl-C (AMAML_HOME: data, default .amaml; AMAML_PORT: default 8000)
	@exec .venv/bin/python -m launcher up

client: $(STAMP) ## the synchronous client, client.py, made anew from async_client.py
	@exec .venv/bin/python client/tools/synchronous.py

check: $(STAMP) ## lint, types, import contracts
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy
	.venv/bin/lint-imports

bench: $(BENCH)/.installed ## the numerics' benchmarks beside their peers, about an hour; benchmarks/results/*.json, docs/figures
	@$(BENCH)/bin/python -m amaml.kernel.build
	@exec $(BENCH)/bin/python -m benchmarks

bench-api: $(BENCH)/.installed $(BENCH)-mlflow/.installed ## the API's throughput beside a bare one and MLflow, and 2,000 event streams: 6 minutes
	@exec $(BENCH)/bin/python -m benchmarks.api

$(BENCH)-mlflow/.installed: benchmarks/requirements-mlflow.txt
	$(PYTHON) -m venv --clear $(BENCH)-mlflow
	$(BENCH)-mlflow/bin/python -m pip install --quiet -r $<
	@touch $@

bench-latency: $(STAMP) ## how long users wait and what waiting workers cost, about 6 minutes; benchmarks/results/latency.json
	@exec .venv/bin/python -m benchmarks.latency

gpu-bundle: $(STAMP) ## .gpu-bundle: CUDA tests and benchmarks for a machine with PyTorch but no network (GPU_PYTHON: its Python, 3.12)
	@exec .venv/bin/python -m benchmarks.gpu_bundle --python $(GPU_PYTHON)

$(BENCH)/.installed: pyproject.toml constraints.txt benchmarks/requirements-jax.txt
	$(PYTHON) -m venv --clear $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(PYTHON) -m venv --clear $(BENCH)-jax
	$(BENCH)-jax/bin/python -m pip install --quiet -r benchmarks/requirements-jax.txt
	@touch $@

# No stamp, no trust: it goes before anything is changed, so what an interrupted run had half unpacked is thrown away.
$(STAMP): pyproject.toml client/pyproject.toml constraints.txt $(wildcard amaml/kernel/*.h amaml/kernel/cpu/*)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d: name one with make PYTHON=python3.12" % sys.version_info[:2])'
	@if ! [ -e $@ ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
		echo "making .venv"; rm -f $@; $(PYTHON) -m venv --clear .venv; fi
	@rm -f $@
	@echo "installing into .venv (PyTorch is large: this takes a minute)"
	@.venv/bin/python -m pip install --quiet -c constraints.txt -e ./client -e '.[dev]'
	@.venv/bin/python -m amaml.kernel.build
	@touch $@
