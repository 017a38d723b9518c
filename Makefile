# Two commands for a newcomer:  make demo   and   make test.
# Works with GNU make 3.81 and BSD tools. Everything is installed into .venv.

VENV := .venv
BIN := $(VENV)/bin
SOURCES := mlx_lm_openevolve evolve tests benchmarks examples

# The tests start hundreds of commands, and each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

# The first Python that is new enough; Apple's own python3 is 3.9.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then \
	echo $$p; break; fi; done)

# How mlx-lm gets its MLX: built in on macOS, by CUDA version beside an NVIDIA driver, else CPU.
EXTRA ?= $(shell if [ "$$(uname -s)" = Darwin ]; then echo host; \
	else v=$$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | head -n 1); \
	if [ -z "$$v" ]; then echo host,cpu; elif [ "$$v" -ge 13 ]; then echo host,cuda13; \
	else echo host,cuda12; fi; fi)

.PHONY: demo test lint types tests slow parity gpu verdicts bench clean

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

test: lint types tests

lint: $(VENV)/installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: export MYPY_NUM_WORKERS := 2
types: $(VENV)/installed
	$(BIN)/mypy

# Two processes; all of a file in one of them, where what its tests share is made once. NumPy has a
# thread in each: with one for every core they wait for each other, spinning.
PYTEST := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

tests: $(VENV)/installed
	$(PYTEST)

slow: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[nvrtc]'
	$(PYTEST) -m "slow or not slow"

# Every architecture of mlx-lm, patched against unpatched.
parity: $(VENV)/installed
	$(BIN)/python tests/support/parity.py
	$(BIN)/python tests/support/parity.py --packed

# What the Apple GPU of this machine lacks of what the tests need.
gpu: $(VENV)/installed
	$(BIN)/python tests/support/apple_gpu.py

# Judge the shipped kernels on this GPU over the workloads that tuned/ ships verdicts for:
#   make verdicts DEVICE=cuda OUT=folder
OUT ?= build/tuned
verdicts: $(VENV)/installed
	$(BIN)/python benchmarks/gate_grid.py $(if $(DEVICE),--backend $(DEVICE)) --output $(OUT)

bench: $(VENV)/installed
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/metalhost.py

$(VENV)/installed: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.10 or newer is needed: on macOS 'brew install python',\
	 on Debian 'apt install python3 python3-venv'" >&2; exit 2; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv:\
	 on Debian 'apt install python3-venv'" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRA),report,fleet,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
