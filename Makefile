# make reproduce   the environment, then every figure   (options: make reproduce ARGS="--profile smoke")
# make test        the environment, then the tests      (options: make test ARGS="-k physics")
# make browser-test   the environment, then the explorers in a real browser; asks for Chromium where there is none
# make chromium    installs Chromium where packages come by apt (as root)

PYTHON ?= python3
ARGS ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip --quiet --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed

.PHONY: reproduce test browser-test chromium environment

reproduce: environment
	$(VENV)/bin/phyldm reproduce $(ARGS)

test: environment
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pytest $(ARGS)

browser-test: environment
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || \
		{ echo "No Chromium here: make chromium (apt, as root), or install it as your system does."; exit 1; }
	$(VENV)/bin/pytest -n 0 -m slow -s tests/explorers $(ARGS)

chromium:
	apt-get update
	apt-get install --yes --no-install-recommends chromium

environment: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Installing the pinned libraries into $(VENV): minutes the first time, none after that."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
