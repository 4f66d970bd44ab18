# make demo       sets everything up, runs the demonstration and measures all papers: out/report.html
# make page       the same report, looked at in headless Chromium: screenshots in out/page
# make test       sets everything up and runs the C tests and the Python tests
# make lint       style, types, formatting, C warnings as errors
# make parity     against torch, transformers and TransformerLens, in an environment of its own
# make sanitize   the C tests under AddressSanitizer + UBSan, and under ThreadSanitizer
# make bench      every figure as a ratio to its peer or floor
# make wheel      sdist and wheel into dist/
# make clean
#
# PYTHON=python3.12 picks a Python; TORCH_INDEX=URL names a package index that holds the CPU build of torch, for machines where
# the default one would bring CUDA along.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
TORCH_INDEX ?=

VENV := .venv
PEERS := .venv-peers
EXTRAS := text,hub,gguf,plot,dist,notebook,test
TOOLS := ruff==0.17.6 mypy==2.4.1 clang-format==14.0.6 build
REFERENCES := safetensors sentencepiece
TORCH := torch==2.13.0
PEER_PACKAGES := "transformers==5.23.0" "transformer_lens==3.9.0" better_abc $(REFERENCES) \
  "maze-dataset==1.4.2" "muutils<0.9"

PY := $(VENV)/bin/python
PEERS_PY := $(PEERS)/bin/python
PIP_FLAGS := --quiet --disable-pip-version-check
C_FILES = $(wildcard csrc/*/*.c csrc/*/*.h tests/c/*.c tests/c/*.h benchmarks/*.c)
# The index only where one is named.
TORCH_FLAGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: demo page build build-peers test test-c lint parity sanitize bench wheel clean

demo: build
	$(VENV)/bin/clew demo
	$(VENV)/bin/clew report

page: build
	@.ci/prepare $(PY) --chromium
	$(VENV)/bin/clew report
	$(PY) tests/python/browser.py out/report.html --shots out/page

# ---- Environments: made again when what they hold changes ------------------------------------------------------------

$(VENV)/.made: pyproject.toml Makefile
	.ci/prepare $(PYTHON)
	@echo "An environment in $(VENV): packages from the index, then the extension is compiled; a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install $(PIP_FLAGS) --upgrade pip "setuptools>=77" "numpy>=2"
	.ci/prepare $(PY) --blis
	@echo "Compiling clew, and installing what tests and notebooks need ..."
	$(PY) -m pip install $(PIP_FLAGS) --no-build-isolation -e '.[$(EXTRAS)]' $(TOOLS) $(REFERENCES)
	@echo "Everything is installed."
	touch $@

$(PEERS)/.made: pyproject.toml Makefile
	.ci/prepare $(PYTHON)
	$(PYTHON) -m venv $(PEERS)
	$(PEERS_PY) -m pip install $(PIP_FLAGS) --upgrade pip "setuptools>=77" "numpy>=2"
	.ci/prepare $(PEERS_PY) --blis
	$(PEERS_PY) -m pip install $(PIP_FLAGS) $(TORCH_FLAGS) $(TORCH)
	$(PEERS_PY) -m pip install $(PIP_FLAGS) --no-build-isolation -e '.[text,hub,gguf,plot,test]' $(PEER_PACKAGES)
	touch $@

# The environment holds this tree; only the extension has to follow it.
build: $(VENV)/.made
	@.ci/prepare $(PY) --blis
	@echo "Compiling what changed of the extension ..."
	@$(PY) setup.py --quiet build_ext --inplace

build-peers: $(PEERS)/.made
	@.ci/prepare $(PEERS_PY) --blis
	@$(PEERS_PY) setup.py --quiet build_ext --inplace

# ---- Tests -----------------------------------------------------------------------------------------------------------

test: build
	@$(PY) -c "import importlib.util as u; raise SystemExit(u.find_spec('umap') is None)" || \
	  $(PY) -m pip install $(PIP_FLAGS) umap-learn || echo "No umap-learn: the test of its projection is skipped."
	@mkdir -p build
	$(PY) tests/c/run.py | tee build/test-c.log
	$(PY) -m pytest -q -n 2 --dist loadfile tests/python | tee build/test-python.log
	@echo "make test: C checks: $$(tail -n 1 build/test-c.log); Python tests: $$(tail -n 1 build/test-python.log)"

test-c: build
	$(PY) tests/c/run.py

sanitize: build
	@mkdir -p build
	$(PY) tests/c/run.py --sanitize address | tee build/sanitize-address.log
	$(PY) tests/c/run.py --sanitize thread | tee build/sanitize-thread.log
	@echo "make sanitize: address and undefined behaviour: $$(tail -n 1 build/sanitize-address.log);" \
	  "threads: $$(tail -n 1 build/sanitize-thread.log)"

# The tokenizer tests compare with transformers where it is installed: here.
parity: build-peers
	@mkdir -p build
	$(PEERS_PY) -m pytest -q tests/parity tests/python/test_tokenizer*.py | tee build/parity.log
	@echo "make parity: $$(tail -n 1 build/parity.log)"

bench: build-peers
	$(PEERS_PY) -m benchmarks

# ---- Style -----------------------------------------------------------------------------------------------------------

lint: build
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict python/clew
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	CLEW_WERROR=1 $(PY) setup.py --quiet build_ext --build-lib build/lint
	CLEW_WERROR=1 $(PY) tests/c/run.py --build-only
	@echo "make lint: no complaints"

# ---- Packages --------------------------------------------------------------------------------------------------------

wheel: build
	$(PY) -m build --outdir dist .
	@ls -l dist

clean:
	rm -rf build dist out python/*.egg-info python/clew/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	rm -rf $(VENV) $(PEERS)
