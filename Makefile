# make reproduce   the environment, then every figure   (options: make reproduce ARGS="--profile smoke")
# make test        the environment, then the tests      (options: make test ARGS="-k physics")

PYTHON ?= python3
ARGS ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip --quiet --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed

.PHONY: reproduce test environment

reproduce: environment
	$(VENV)/bin/phyldm reproduce $(ARGS)

test: environment
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pytest $(ARGS)

environment: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Installing the pinned libraries into $(VENV): minutes the first time, none after that."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements.txt
	@$(PIP) install --no-deps -e .
	@touch $@
