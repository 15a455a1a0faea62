# make            prints this help
# make train      trains one network and logs its gradients; every value can be given: make train ACT=relu INIT=he
PYTHON ?= python3
BIN := .venv/bin

# make's variable = vgrad's flag. Only what the command line gives counts (NAME is also the host's name in some shells);
# it reaches vgrad through the environment, so that the shell reads no character of it as its own.
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

.PHONY: help install train sweep preflight board test bench check calibrate scale gallery format clean
.DEFAULT_GOAL := help

help: ## this help
	@echo "vgrad_torch: see the gradient of a deep network die, and what brings it back"
	@echo
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'
	@echo
	@echo "  DATA=digits|circles|mnist|fashion-mnist|cifar10   ACT=sigmoid|tanh|relu|...   INIT=uniform|xavier|he|..."
	@echo "  NORM=batch|layer  RESIDUAL=1  GAIN=2  BIAS=-0.5  CLIP=1"
	@echo "  HIDDEN=512,256,128  OPT=sgd|rmsprop|adam|adamw  LR MOMENTUM WD BATCH EPOCHS SEED EVERY MONITOR NAME RUNS DATA_DIR NPROC"
	@echo "  make sweep takes several values, ACT=sigmoid,tanh,relu LR=0.1,0.01, of DATA ACT INIT NORM GAIN OPT LR; SEEDS=5 JOBS=2 BACKEND"
	@echo
	@echo "  RESUME=runs/x goes on with a run that was interrupted"
	@echo
	@echo "  First: make train ACT=sigmoid; make train ACT=relu; make board"

install: .venv/installed ## set up .venv with what training needs

train: .venv/installed ## train a network and log its gradients into runs/ (NPROC=4: in four processes)
	@VGRAD_MAKE=1 $(TRAIN) $(FLAGS) $(if $(and $(filter RESUME,$(GIVEN)),$(RESUME)),,"--runs=$$VGRAD_RUNS")

sweep: .venv/installed ## train a grid of networks and compare them; one that was stopped goes on where it was
	@VGRAD_MAKE=1 exec $(BIN)/vgrad sweep $(SWEEP) "--runs=$$VGRAD_RUNS"

preflight: .venv/installed ## judge a network from one batch, untrained, and try what could mend it; takes train's values
	@VGRAD_MAKE=1 exec $(BIN)/vgrad preflight --what-if $(NETWORK)

board: .venv/installed ## TensorBoard on localhost over runs/ (PORT=6006)
	@exec $(BIN)/vgrad board "--runs=$$VGRAD_RUNS" $(call flag,PORT,port)

test: .venv/installed-dev ## run the tests
	$(BIN)/python -m pytest

bench: .venv/installed-dev ## what watching costs, beside what people do today
	$(BIN)/python -m tests.scripts.bench

check: .venv/installed-dev ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

calibrate: .venv/installed ## train the networks that the verdict is calibrated on, half an hour on two cores
	$(BIN)/python -m tests.scripts.calibrate

scale: .venv/installed ## what watching costs at 70 billion parameters on 1,024 ranks, into runs/scale
	$(BIN)/python -m tests.scripts.scale

gallery: .venv/installed ## draw the figures of both tutorials and the cures into runs/gallery, two minutes; DATA_DIR=MNIST's
	$(BIN)/python -m tests.scripts.gallery $(call flag,DATA_DIR,data-dir)

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
