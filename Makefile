# Everything stays inside the checkout: the environment in .venv, caches in .cache, results in runs.
PYTHON ?= python3.11
BIN := .venv/bin
export FER_JAX_CACHE := $(CURDIR)/.cache/fer_jax
export PIP_CACHE_DIR := $(CURDIR)/.cache/pip
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export KERAS_HOME := $(CURDIR)/.cache/keras
export TMPDIR := $(CURDIR)/.cache/tmp
export PYTHONDONTWRITEBYTECODE := 1

$(shell mkdir -p "$(TMPDIR)")

.PHONY: help demo test parity bench lint clean

help:  ## What can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/ready-test: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

.venv/ready-dev: .venv/ready-test
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv-parity/ready: pyproject.toml
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --editable '.[test,parity]'
	touch $@

.venv-bench/ready: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --editable '.[test,bench]'
	touch $@

demo: .venv/ready  ## OpenFace from scratch on drawn faces, a few minutes
	$(BIN)/python -m fer_jax.main --config=configs/demo.py --workdir=runs/demo

test: .venv/ready-test  ## The tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope

parity: .venv-parity/ready  ## Parity with deepface's own builders, which need TensorFlow
	.venv-parity/bin/python -m pytest -m parity tests/parity

bench: .venv-bench/ready  ## Speed against Keras on TensorFlow and on JAX, and against torch, about 12 minutes
	.venv-bench/bin/python -m pytest tests/benchmarks/test_torch_models.py tests/benchmarks/test_keras_tf.py
	.venv-bench/bin/python -m benchmarks.throughput --backbones=openface --phases=forward,cell \
		--batch_sizes=32 --peers=keras-tf,keras-jax,torch --repeats=3 --seconds=2

lint: .venv/ready-dev  ## Formatting, lints, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## Removes environments, caches and runs
	rm -rf .venv .venv-parity .venv-bench .cache runs
