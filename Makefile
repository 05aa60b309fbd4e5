# Each target makes its own .venv when there is none; nothing but Python 3.11 with venv and make is assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := vmm devices machine guest_images tests docs

.PHONY: demo test endurance lint bench mutation docs guests images clean

demo: $(READY) ## Boot the hot-plug guest, plug, interrupt, unplug; one verdict a device
	@$(BIN)/vintx demo

test: $(READY) ## The test suite
	$(BIN)/pytest -q -n auto --dist worksteal

endurance: $(READY) ## The long forms of the endurance tests: 100,000 interrupts, 1,000 unplugs each
	VINTX_FULL=1 $(BIN)/pytest -q -n auto --dist worksteal --durations=10 tests/endurance

lint: $(READY) ## Style, import order, types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

bench: $(READY) ## Figures, beside those of qemu-system-x86_64 where it is installed
	$(BIN)/vintx bench

mutation: $(READY) ## Does a test notice each small change of the interrupt path? ARGS='--sample 300 --seed 1'; hours without
	$(BIN)/pip install --quiet -e '.[mutation]'
	$(BIN)/python tests/mutation/run.py $(ARGS)

docs: $(READY) ## The documentation as HTML, in build/docs
	$(BIN)/pip install --quiet -e '.[docs]'
	$(BIN)/sphinx-build -q -W -b html docs build/docs
	@echo "build/docs/index.html"

guests: $(READY) ## The Linux guest of the tests, from Debian's packages (SUITE=trixie: another Debian's kernel)
	$(BIN)/python -m guest_images.linux

images: ## Rebuild the guest images with binutils
	$(MAKE) -C guest_images
	$(MAKE) -C guest_images/linux

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vintx needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python -m compileall -q vmm devices machine guest_images # also where PYTHONDONTWRITEBYTECODE is set
	@touch $@
