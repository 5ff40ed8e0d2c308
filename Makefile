# Everything runs in .venv, which `make setup` makes with nothing but Debian's
# python3.11 and python3.11-venv.

PYTHON3 ?= python3.11
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check

MODEL ?= model_registry.catalog.Demo
LOGDIR ?= logdir
MESH ?= 8
STEPS ?=
LADDER ?= ladder
PYTEST_ARGS ?=
JOBS ?= 2

LINGVO_OPS := $(shell find third_party/lingvo_x_ops -type f -not -path '*/__pycache__/*')

.DEFAULT_GOAL := help

.PHONY: help
help:  ## List the commands.
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

.PHONY: setup
setup: $(VENV)/.setup  ## Install everything into .venv (3.5 GB, two minutes).

.PHONY: setup-tpu
setup-tpu: $(VENV)/.setup-tpu  ## Also install the TPU compiler, for tools.aot_report.

.PHONY: setup-test
setup-test: $(VENV)/.setup-test  ## Also install what the tests need, and the TPU compiler.

.PHONY: train
train: setup  ## Train MODEL on MESH devices into LOGDIR for STEPS, then translate and score.
	$(PYTHON) -m gshard_tf.trainer --model=$(MODEL) --logdir=$(LOGDIR) --mesh=$(MESH) $(if $(STEPS),--max_steps=$(STEPS))
	$(PYTHON) -m gshard_tf.decode --logdir=$(LOGDIR) --untrained

.PHONY: plot
plot: setup  ## Draw the training curve of LOGDIR to LOGDIR/training.png.
	$(PYTHON) -m tools.plot_training --output=$(LOGDIR)/training.png $(LOGDIR)

.PHONY: aot-ladder
aot-ladder: setup-tpu  ## Compile the paper's models for its TPUs into LADDER, and time compiling by partitions.
	mkdir -p $(LADDER)
	$(PYTHON) -m tools.bench compile --json=$(LADDER)/compile.json --plot=$(LADDER)/compile.png
	$(PYTHON) -m tools.aot_ladder --output=$(LADDER)

.PHONY: test
test: setup-test  ## Run all tests in JOBS processes; PYTEST_ARGS="-m 'not slow'" leaves out the long ones.
	$(PYTHON) -m pytest -n $(JOBS) --dist=loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: bazel-test
bazel-test: setup-test  ## Run all tests under Bazel, offline.
	bazel test //...

# The versions of all packages that nobody asked for by name, from what .venv
# holds. To renew them: empty requirements/lock.txt, delete .venv, then `make
# setup-test lock` with Debian 12's own Python 3.11.2, the oldest supported (a
# newer 3.11 picks packages that 3.11.2 cannot install).
.PHONY: lock
lock: setup-test  ## Write requirements/lock.txt from what is installed.
	$(PIP) freeze --all | sed 's/+cpu$$//' > $(VENV)/freeze.txt
	grep -h == requirements.txt requirements/no_deps.txt requirements/tpu.txt requirements/test.txt \
	  | sed 's/ *#.*//' | grep -vixF -f - $(VENV)/freeze.txt | grep -vE '^pip==|@ file:' > requirements/lock.txt

$(VENV)/.setup: requirements.txt requirements/lock.txt requirements/no_deps.txt $(LINGVO_OPS)
	test -x $(PYTHON) || $(PYTHON3) -m venv $(VENV)
	$(PIP) install --quiet -r requirements.txt
	$(PIP) install --quiet --no-deps -r requirements/no_deps.txt
	touch $@

$(VENV)/.setup-tpu: $(VENV)/.setup requirements/tpu.txt
	$(PIP) install --quiet -r requirements/tpu.txt
	touch $@

$(VENV)/.setup-test: $(VENV)/.setup-tpu requirements/test.txt
	$(PIP) install --quiet -r requirements/test.txt
	touch $@
