# One environment for the project (.venv), one for the docs tools (.venv-docs): torchattacks pins a `requests`
# that current mkdocs-material refuses. Each is made once and refreshed when its requirements change. The demo needs a part
# of .venv only, and brings only that; whatever needs more adds the rest.

PYTHON ?= python3
VENV := .venv
DOCS_VENV := .venv-docs
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
BUILT_FROM := pyproject.toml setup.py dcn_plugin/engine/kernel.c dcn_plugin/engine/training.c dcn_plugin/engine/parallel.h
DOCS_STAMP := $(DOCS_VENV)/.installed
BIN := $(VENV)/bin
DOCS_BIN := $(DOCS_VENV)/bin
# Processes of one test run, and further arguments for it or for the demo: make demo ARGS="--seeds 1"
JOBS ?= 2
ARGS ?=
# make reproduce-small: the data set, the folder for the results, the scale of the recipes.
DATA ?=
OUT ?= reproduce-small
SCALE ?= small
# mkdocs-material prints a banner about its successor on every run.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help install demo reproduce-small need-data test test-all lint docs docs-serve clean

help:
	@echo "make demo        train and attack small nets on real digits, results in demo-out/; installs what that needs"
	@echo "make reproduce-small DATA=ROOT"
	@echo "                 table 5 and figure 4 with small networks on CIFAR-10, hours; goes on where it stopped"
	@echo "make test        lint, then the fast tests; installs every extra"
	@echo "make test-all    lint, every test, the docs"
	@echo "make lint        ruff and mypy"
	@echo "make docs        run the tutorials, build the docs into site/ (docs-serve: with live reload)"
	@echo "make clean       remove caches and build output; the environments stay"

# $(call make_venv,FOLDER): make the environment unless it is there.
define make_venv
@test -x $(1)/bin/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "dcn_plugin needs Python >= 3.11; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)" >&2; \
  echo "Name another interpreter: make PYTHON=python3.12 ..." >&2; exit 1; }
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef

# Packages and sizes: Linux x86-64, Python 3.11, pip's own choice of torch (with CUDA, 5.6 GB of them).
$(STAMP): $(BUILT_FROM)
	$(call make_venv,$(VENV))
	@echo "Installing dcn_plugin with all extras into $(VENV): about 105 packages, 6.5 GB with a torch for CUDA; a torch that is there stays."
	$(BIN)/python -m pip install --editable '.[all]'
	@touch $(DEMO_STAMP) $@

$(DEMO_STAMP): $(BUILT_FROM)
	$(call make_venv,$(VENV))
	@echo "Installing dcn_plugin with what the demo needs into $(VENV): about 65 packages, 6.1 GB with a torch for CUDA; a torch that is there stays."
	$(BIN)/python -m pip install --editable '.[demo]'
	@touch $@

$(DOCS_STAMP): docs/requirements.txt
	$(call make_venv,$(DOCS_VENV))
	$(DOCS_BIN)/python -m pip install --requirement docs/requirements.txt
	@touch $@

install: $(STAMP)

demo: $(DEMO_STAMP)
	$(BIN)/defective demo --out demo-out $(ARGS)

# Before anything is installed or trained.
need-data:
	@test -n "$(DATA)" || { \
	  echo "make reproduce-small needs CIFAR-10: make reproduce-small DATA=ROOT" >&2; \
	  echo "ROOT holds cifar-10-batches-py/ (torchvision's), or train/<class>/*.png and test/<class>/*.png" >&2; exit 1; }

reproduce-small: need-data $(STAMP)
	$(BIN)/defective recipe run table05 figure04 --scale "$(SCALE)" --data "$(DATA)" --out "$(OUT)" $(ARGS)
	$(BIN)/defective report "$(OUT)/table05/$(SCALE)/record.json" --baseline Standard
	$(BIN)/defective report "$(OUT)/figure04/$(SCALE)/record.json" --baseline Standard

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict dcn_plugin

test: lint
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

test-all: lint docs
	$(BIN)/python -m pytest -n $(JOBS) -m "" $(ARGS)

docs: $(STAMP) $(DOCS_STAMP)
	$(BIN)/python -m docs._build.generate
	$(DOCS_BIN)/mkdocs build --strict

docs-serve: $(STAMP) $(DOCS_STAMP)
	$(BIN)/python -m docs._build.generate
	$(DOCS_BIN)/mkdocs serve --strict

clean:
	rm -rf build dist site demo-out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dcn_plugin tests recipes -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
