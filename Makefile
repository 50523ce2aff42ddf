# Two commands on a fresh machine: `make demo` and `make test`. Everything is installed into .venv, nothing elsewhere.
PYTHON ?= python3

VENV := .venv
NAPARI := .venv-napari
STAMP := $(VENV)/.installed
# Without a screen, xvfb-run (Debian's package xvfb) gives napari one.
SCREEN = $(if $(DISPLAY)$(WAYLAND_DISPLAY),,xvfb-run -a -s '-screen 0 1600x1000x24')
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

# An environment that cannot import the package (a removed Python, a moved checkout) is forgotten, and built afresh below.
FORGET := $(shell $(VENV)/bin/python -I -c "import emformer_hub" 2>/dev/null || echo forget)

.PHONY: demo docs notebooks notebook-napari test test-random test-slow test-napari conformance lint types clean forget

demo: $(STAMP) ## reconstruct the bundled phantom with the bundled weights, into demo-output/
	$(VENV)/bin/emformer-hub demo demo-output --overwrite

docs: $(STAMP) ## the site, into site/; serve it with .venv/bin/mkdocs serve
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet

TUTORIALS = $(basename $(notdir $(wildcard docs/tutorials/*.ipynb)))
notebooks: $(STAMP) ## execute the tutorials, and store what they print and show
	$(VENV)/bin/python docs/notebooks.py $(filter-out napari,$(TUTORIALS))

notebook-napari: $(NAPARI)/.installed ## the same for the tutorial on napari
	env OMP_NUM_THREADS=1 $(SCREEN) $(NAPARI)/bin/python docs/notebooks.py napari

test: $(STAMP) ## the tests, without the slow ones: a file a process and core, of one thread each
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_OPTIONS)

test-random: SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
test-random: SEED := $(SEED)
test-random: $(STAMP) ## the same with new random examples; repeat a run with SEED=
	@echo "==> Random examples of seed $(SEED); the same again: make test-random SEED=$(SEED)"
	env -u CI OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --hypothesis-seed=$(SEED) $(PYTEST_OPTIONS)

test-slow: $(STAMP) ## the slow tests
	$(VENV)/bin/python -m pytest -q -m slow

conformance: $(STAMP) ## the tests that transformers has for every model, of the installed version, fetched from its source package
	$(VENV)/bin/python tests/conformance/fetch.py
	PYTHONPATH=tests/conformance OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -c /dev/null --rootdir tests/conformance tests/conformance/transformers_models.py

test-napari: $(NAPARI)/.installed ## the tests of the napari plugin, in an environment of its own, which has Qt
	env OMP_NUM_THREADS=1 $(SCREEN) $(NAPARI)/bin/python -m pytest -q tests/napari_plugin $(PYTEST_OPTIONS)

lint: $(STAMP)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

types: $(STAMP)
	$(VENV)/bin/python -m mypy

clean: ## remove what make made: the environment, the demo's output, caches; never runs/
	rm -rf $(VENV) $(NAPARI) demo-output site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

forget:
	@rm -f $(STAMP)

# The stamp is written last, so an interrupted installation leaves none and the next make starts from an empty folder.
$(STAMP): pyproject.toml constraints.txt $(FORGET)
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
	  f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}. Name another one: make PYTHON=python3.12")'
	@test -e $@ || { echo "==> Making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@rm -f $@
	@echo "==> Installing PyTorch, the largest download"
	$(PIP) install -c constraints.txt torch==2.13.0
	@echo "==> Installing the package and its tested dependencies, a minute or more without output"
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(NAPARI)/.installed: pyproject.toml constraints.txt
	@test -e $(NAPARI)/bin/python || { echo "==> Making $(NAPARI)"; $(PYTHON) -m venv --clear $(NAPARI); }
	@rm -f $@
	$(NAPARI)/bin/python -m pip --disable-pip-version-check install -c constraints.txt torch==2.13.0
	$(NAPARI)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e '.[napari]' pytest pytest-qt hypothesis nbclient
	@touch $@
