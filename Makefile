# Commands of this course; `make` alone lists them.
# The first of them makes .venv and installs everything there (about 6 GB of disk; nothing outside this folder).
PYTHON ?= python3
BIN := .venv/bin
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
INSTALLED := .venv/.installed
SITE := docs/_build/html
FROM_NPM := docs/node_modules/.package-lock.json
export OMP_WAIT_POLICY := PASSIVE
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help venv course leaderboard test lab notebooks site

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 20

venv: $(INSTALLED)  ## only make .venv

course: $(INSTALLED)  ## train the first model and print what it learned
	$(BIN)/vlp course

leaderboard: $(INSTALLED)  ## record the quick runs of all rows that are missing, two at a time, and print the board
	$(BIN)/vlp leaderboard --run

test: $(INSTALLED)  ## run all tests, one thread in each of two processes
	$(BIN)/python tools/make_tests.py --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lab: $(INSTALLED)  ## open the notebooks in JupyterLab, on this machine only
	$(BIN)/jupyter lab --ip=127.0.0.1 $(AS_ROOT) nbs

notebooks: $(INSTALLED)  ## run all notebooks and store their outputs
	$(BIN)/python tools/run_notebooks.py --write

site: $(INSTALLED) $(FROM_NPM)  ## build the site into docs/_build/html
	@rm -rf docs/_build
	$(BIN)/python -m sphinx -W --keep-going -E -q -b html docs $(SITE)
	@echo "The site is in $(SITE); look at it with: $(BIN)/python -m http.server -b 127.0.0.1 -d $(SITE)"

$(FROM_NPM): docs/package.json docs/package-lock.json
	@command -v npm >/dev/null || { echo "There is no npm: the site needs Node.js 20 or newer (for MathJax, and for its check)"; exit 1; }
	npm ci --prefix docs --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

$(INSTALLED): settings.ini setup.py pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON); name a Python 3.11 to 3.13: make PYTHON=/path/to/python3 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); this course needs Python 3.11 to 3.13: make PYTHON=/path/to/python3 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@echo "Installing vlp_course and its requirements into .venv (once; torch is about 3 GB, so this takes minutes) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@
