# Everything a newcomer needs: `make demo` runs the main job, `make test` passes the tests; both do all the set-up.
PYTHON ?= python3
VENV ?= .venv
# Version of torch, and where pip finds it. On Linux PyPI's torch is a CUDA build. For the smaller CPU build:
#   make demo INDEX=https://download.pytorch.org/whl/cpu
TORCH ?= 2.13.0
INDEX ?=
# make wheel: cpu, or a CUDA release without its dot; and the torches that it is checked beside.
CUDA ?= cpu
TORCHES ?= $(TORCH)
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test slow emulate lint format docs benchmarks bench nvcc wheel clean

demo: $(VENV)/.built
	$(BIN)/unlearnx run poison-digits

# One thread a worker: tests that need more ask for them, and two busy thread pools on one core stall each other.
test: $(VENV)/.built
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile --durations 10

# Minutes or many gigabytes each: tensors of more than 2^31 values, a wheel built and installed.
slow: $(VENV)/.built
	$(BIN)/python -m pytest -m slow --durations 10

# The CUDA kernels on the CPU, under AddressSanitizer, against float64, and the faults that the emulator must die of.
emulate: $(VENV)/.built
	$(BIN)/python -m pytest tests/emulator --durations 5

# Five minutes: every method beside retraining, the ops beside their rivals.
benchmarks: $(VENV)/.built
	$(BIN)/pytest benchmarks

# Every benchmark beside every rival; hours.
bench: $(VENV)/.built $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks --all

lint: $(VENV)/.built $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inl')
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run benchmarks/*.sh packaging/*.sh
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inl')

# The site, in build/site; a broken link is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The CUDA compiler alone (271 MB, no GPU needed), for the tests that compile the kernels.
nvcc: $(VENV)/.torch
	$(BIN)/pip install -q "cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]==13.0.2"

# A wheel for every torch from 2.10 on, such as `make wheel CUDA=130 TORCHES="2.11.0 2.12.1"`; PYTHONS are further
# Pythons that it is for.
wheel:
	PYTHON="$(PYTHON)" PYTHONS="$(PYTHONS)" INDEX="$(INDEX)" packaging/wheel.sh $(CUDA) $(TORCHES)

clean:
	rm -rf build *.egg-info unlearnx/*.so $(VENV)/.built

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip "setuptools>=77" ninja
	$(BIN)/pip install -q torch==$(TORCH) $(if $(INDEX),--index-url $(INDEX))
	touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install -q --no-build-isolation -e ".[experiments,test]"
	touch $@

$(VENV)/.bench: $(VENV)/.built benchmarks/rivals.txt
	$(BIN)/pip install -q --no-deps -r benchmarks/rivals.txt
	touch $@

$(VENV)/.lint: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q --group lint
	touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q --group docs
	touch $@
