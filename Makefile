# make            prints this help
# make train      trains one network and logs its gradients; every value can be given: make train ACT=relu INIT=he
PYTHON ?= python3
RUNS ?= runs
BIN := .venv/bin

# make's name = vgrad's flag; what is not given is the recipe's
FLAGS := $(if $(DATA),--data "$(DATA)") $(if $(ACT),--act "$(ACT)") $(if $(INIT),--init "$(INIT)") \
	$(if $(HIDDEN),--hidden "$(HIDDEN)") $(if $(OPT),--optimizer "$(OPT)") $(if $(LR),--lr "$(LR)") \
	$(if $(MOMENTUM),--momentum "$(MOMENTUM)") $(if $(WD),--weight-decay "$(WD)") $(if $(BATCH),--batch "$(BATCH)") \
	$(if $(EPOCHS),--epochs "$(EPOCHS)") $(if $(SEED),--seed "$(SEED)") $(if $(EVERY),--every "$(EVERY)") \
	$(if $(MONITOR),--monitor "$(MONITOR)") $(if $(NAME),--name "$(NAME)") $(if $(DATA_DIR),--data-dir "$(DATA_DIR)")

.PHONY: help install train board test check format clean
.DEFAULT_GOAL := help

help: ## this help
	@echo "vgrad_torch: see the gradient of a deep network die, and what brings it back"
	@echo
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'
	@echo
	@echo "  DATA=digits|circles|mnist|fashion-mnist|cifar10   ACT=sigmoid|tanh|relu|...   INIT=uniform|xavier|he|..."
	@echo "  HIDDEN=512,256,128  OPT=sgd|rmsprop|adam|adamw  LR MOMENTUM WD BATCH EPOCHS SEED EVERY MONITOR NAME RUNS DATA_DIR"
	@echo
	@echo "  First: make train ACT=sigmoid; make train ACT=relu; make board"

install: .venv/installed ## set up .venv with what training needs

train: .venv/installed ## train a network and log its gradients into runs/
	@$(BIN)/vgrad train $(FLAGS) --runs "$(RUNS)"

board: .venv/installed ## TensorBoard on localhost over runs/ (PORT=6006)
	@$(BIN)/vgrad board --runs "$(RUNS)" $(if $(PORT),--port "$(PORT)")

test: .venv/installed-dev ## run the tests
	$(BIN)/python -m pytest

check: .venv/installed-dev ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev ## reformat the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vgrad_torch needs Python 3.11 or later, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
