# make            prints this help
# make train      trains one network and logs its gradients; every value can be given: make train ACT=relu INIT=he
PYTHON ?= python3
BIN := .venv/bin

# Each of these variables becomes a flag of vgrad: ACT=relu is --act=relu. Only values given on make's command line count,
# since some shells set variables such as NAME. They reach vgrad through the environment, so the shell cannot interpret them.
VARIABLES := DATA ACT INIT HIDDEN NORM RESIDUAL GAIN BIAS OPT LR MOMENTUM WD CLIP BATCH EPOCHS SEED EVERY MONITOR NAME DATA_DIR \
	RESUME NPROC SEEDS JOBS BACKEND PORT
GIVEN := $(foreach v,$(VARIABLES),$(if $(filter command line,$(origin $v)),$v))
$(foreach v,$(GIVEN),$(eval export VGRAD_$v := $$(value $v)))
flag = $(if $(filter $1,$(GIVEN)),$${VGRAD_$1:+"--$2=$$VGRAD_$1"})
NETWORK = $(call flag,DATA,data) $(call flag,DATA_DIR,data-dir) $(call flag,ACT,act) $(call flag,INIT,init) \
	$(call flag,HIDDEN,hidden) $(call flag,NORM,norm) $(call flag,GAIN,gain) $(call flag,BIAS,bias) \
	$(if $(filter-out 0 no off false,$(and $(filter RESIDUAL,$(GIVEN)),$(RESIDUAL))),--residual) \
	$(call flag,OPT,optimizer) $(call flag,LR,lr) $(call flag,MOMENTUM,momentum) $(call flag,WD,weight-decay) \
	$(call flag,BATCH,batch) $(call flag,SEED,seed)
FLAGS = $(NETWORK) $(call flag,CLIP,clip) $(call flag,EPOCHS,epochs) $(call flag,EVERY,every) \
	$(call flag,MONITOR,monitor) $(call flag,NAME,name) $(call flag,RESUME,resume)
SWEEP = $(FLAGS) $(call flag,SEEDS,seeds) $(call flag,JOBS,jobs) $(call flag,BACKEND,backend)
TRAIN = exec $(BIN)/vgrad train
ifneq ($(and $(filter NPROC,$(GIVEN)),$(NPROC)),)
TRAIN = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} exec $(BIN)/torchrun --standalone "--nproc-per-node=$$VGRAD_NPROC" -m -- vgrad_torch train
endif
export VGRAD_RUNS := $(or $(if $(filter command line,$(origin RUNS)),$(value RUNS)),runs)

# One more than the cores, since many tests wait for a process that they started.
WORKERS = $(shell $(PYTHON) -c 'import os; print(min((os.cpu_count() or 1) + 1, 8))')

.PHONY: help install train sweep preflight board test test-oldest test-extras bench check calibrate scale gallery format clean
.DEFAULT_GOAL := help

help: ## this help
	@echo "vgrad_torch: shows the gradient that each layer of a network receives, and how to fix it where it vanishes"
	@echo
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo
	@echo "  DATA=digits|circles|mnist|fashion-mnist|cifar10   ACT=sigmoid|tanh|relu|...   INIT=uniform|xavier|he|..."
	@echo "  NORM=batch|layer  RESIDUAL=1  GAIN=2  BIAS=-0.5  CLIP=1"
	@echo "  HIDDEN=512,256,128  OPT=sgd|rmsprop|adam|adamw  LR MOMENTUM WD BATCH EPOCHS SEED EVERY MONITOR NAME RUNS DATA_DIR NPROC"
	@echo "  make sweep takes several values, ACT=sigmoid,tanh,relu LR=0.1,0.01, of DATA ACT INIT NORM GAIN OPT LR; SEEDS=5 JOBS=2 BACKEND"
	@echo
	@echo "  RESUME=runs/x continues a run that was interrupted"
	@echo
	@echo "  First: make train ACT=sigmoid; make train ACT=relu; make board"

install: .venv/installed ## set up .venv with what training needs

train: .venv/installed ## train a network and log its gradients into runs/ (NPROC=4: in four processes)
	@VGRAD_MAKE=1 $(TRAIN) $(FLAGS) $(if $(and $(filter RESUME,$(GIVEN)),$(RESUME)),,"--runs=$$VGRAD_RUNS")

sweep: .venv/installed ## train a grid of networks and compare them; a stopped sweep continues when it is started again
	@VGRAD_MAKE=1 exec $(BIN)/vgrad sweep $(SWEEP) "--runs=$$VGRAD_RUNS"

preflight: .venv/installed ## check a network on one batch before training, and try fixes; takes the values of make train
	@VGRAD_MAKE=1 exec $(BIN)/vgrad preflight --what-if $(NETWORK)

board: .venv/installed ## open TensorBoard on localhost for runs/ (PORT=6006)
	@exec $(BIN)/vgrad board "--runs=$$VGRAD_RUNS" $(call flag,PORT,port)

test: .venv/installed-dev ## run the tests, on all cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-oldest: .venv-oldest/installed ## run the tests with the oldest versions that pyproject.toml allows
	.venv-oldest/bin/python -m pytest -n $(WORKERS) --dist loadfile -W ignore::DeprecationWarning

test-extras: .venv-extras/installed ## run the tests on 15 real architectures (timm, transformers, peft) in their own environment
	OMP_NUM_THREADS=1 .venv-extras/bin/python -m pytest tests/extras -n 2 --dist loadfile

bench: .venv/installed-dev ## measure the cost of watching, compared with other tools
	$(BIN)/python -m tests.scripts.bench

check: .venv/installed-dev ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

calibrate: .venv/installed ## train the networks that calibrate the verdict: half an hour on two cores
	$(BIN)/python -m tests.scripts.calibrate

scale: .venv/installed ## compute the cost of watching 70 billion parameters on 1,024 ranks, into runs/scale
	$(BIN)/python -m tests.scripts.scale

gallery: .venv/installed-dev ## draw the figures of both tutorials and of the fixes into runs/gallery: two minutes
	$(BIN)/python -m tests.scripts.gallery $(call flag,DATA_DIR,data-dir)

format: .venv/installed-dev ## reformat the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environments and caches; runs/ stays
	rm -rf .venv .venv-oldest .venv-extras .mypy_cache .ruff_cache .pytest_cache
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

# Every lower bound of pyproject.toml becomes the version: "torch>=2.6" is torch==2.6.
LOWEST = import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print("\n".join(r.replace(">=", "==") for r in p["dependencies"] + p["optional-dependencies"]["dev"]))

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) -c '$(LOWEST)' > .venv-oldest/lowest.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-oldest/lowest.txt -e .
	@touch $@

# An environment of its own: timm needs torchvision, which asks for its own version of torch.
.venv-extras/installed: pyproject.toml tests/extras/constraints.txt
	$(PYTHON) -m venv .venv-extras
	.venv-extras/bin/python -m pip install --quiet --disable-pip-version-check -c tests/extras/constraints.txt -e '.[dev]' \
		torchvision timm transformers peft accelerate
	@touch $@
