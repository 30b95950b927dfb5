# The two commands of the README, and what CI runs. Both work on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test quick long gpu lint faults bench

# Two modules at a time: most of the time goes into compiling, on one core each. The tests
# of a module share what takes long to make, and stay with one worker.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

demo: .venv/ready
	$(BIN)/python launch.py --config configs/digits.py:train,distill
	$(BIN)/python launch.py --config configs/digits_moment_matching.py --workdir runs/digits

test: .venv/ready
	$(PYTEST) -m "not long and not gpu"

# Without the tests that train: for while you write.
quick: .venv/ready
	$(PYTEST) -m "not slow and not long and not gpu"

# What trains to convergence, the faults that take many runs, and the notebook.
long: .venv/ready
	$(PYTEST) -m long --nbmake tests docs/quickstart.ipynb

# What holds on a GPU only, with JAX for CUDA 12.
gpu: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cuda12]'
	$(BIN)/python -m pytest --confcutdir=tests/gpu -m gpu tests/gpu

# Fifty random kills, damaged checkpoints, full disks, lost hosts: about 20 minutes.
faults: .venv/ready
	$(BIN)/python -m tests.faults --tries 50
	$(BIN)/python -m tests.faults --tries 20 --store

# Ours and the peers in turn: keep the machine quiet for about 10 minutes.
bench: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.steps --short --json bench/steps.json
	$(BIN)/python -m benchmarks.stalls --rounds 3 --json bench/stalls.json
	$(BIN)/python -m benchmarks.growth --short --json bench/growth.json

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@
