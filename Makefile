# `make` lists the targets. ARGS goes on to the command: make train ARGS="optim.learning_rate=1e-4"
# TATARA_RUNTIME=docker|local chooses where a training runs; else Docker where an engine answers.
SHELL := /bin/bash
.DEFAULT_GOAL := help
ARGS ?=
PROFILE ?= demo
PYTHON_TOOL := .venv/bin/python
PYTHON ?= 3.12
TATARA := .venv/bin/tatara

.PHONY: help setup venv train down demo-grpo demo-ja demo-memory demo-vla train-4090 train-vla train-h100 doctor board monitor stop report build test \
	test-full check lint format docs lock bench gpu-bundle clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## .venv, .env and folders; with a Docker engine the image of PROFILE too
	@scripts/setup_environment.sh $(PROFILE)
	@scripts/local_setup.sh

venv:
	@scripts/local_setup.sh

train: ## fine-tune a tiny model on two nodes, on any machine
	@scripts/start_training.sh demo --wait $(ARGS)

demo-grpo: venv ## a tiny vision-language model learns to count by rewards alone, on the CPU
	@$(PYTHON_TOOL) -m workloads.grpo.demo $(ARGS)

demo-ja: venv ## a tiny model learns Japanese, then two adapters learn a task each, on the CPU
	@$(PYTHON_TOOL) -m workloads.llm.demo $(ARGS)

demo-vla: venv ## a tiny robot policy learns to reach a named cube, on the CPU, in a simulator
	@$(TATARA) data generate reach data/reach
	@TATARA_RUNTIME=local CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 \
	  scripts/start_training.sh demo-vla --wait $(ARGS)

demo-memory: venv ## a tiny robot policy remembers a cue, beside the same without a memory, on the CPU
	@$(TATARA) data generate recall data/recall --episodes 1500
	@$(PYTHON_TOOL) -m workloads.vla.demo $(ARGS)

train-4090: ## fine-tune Llama-3.2-1B on GSM8K, 2 nodes x 2 RTX 4090
	@scripts/start_training.sh llm-4090 --wait $(ARGS)

train-vla: ## fine-tune a robot policy; RECIPE=auto, or 16gb, 24gb, 40gb, 80gb, multi-gpu, oft
	@scripts/start_training.sh vla --wait $(ARGS)

train-h100: ## GRPO with a vLLM sampler on H100
	@scripts/start_training.sh grpo-h100 --wait $(ARGS)

doctor: ## say what this machine can run and what it lacks
	@scripts/test_environment.sh $(ARGS)

board: ## TensorBoard of all runs on 127.0.0.1:6006 (BOARD_PORT), in a container
	@scripts/compose.sh --profile board up --detach --wait board

monitor: ## watch the runs
	@scripts/monitor_training.sh $(ARGS)

stop: ## stop what trains; a checkpoint is saved first, a second call ends at once
	@scripts/stop_training.sh $(ARGS)

report: venv ## write the report of a run
	@$(TATARA) report $(ARGS)

build: ## build the image of PROFILE (demo, llm-4090, vla, grpo-h100, calvin)
	@scripts/compose.sh --profile $(PROFILE) build $(ARGS)

down: ## remove this checkout's containers, networks and left-over images; runs and images stay
	@scripts/compose.sh down

test: venv check ## everything that needs neither GPU nor containers, in minutes
	@$(PYTHON_TOOL) scripts/run_tests.py $(ARGS)

test-full: venv check ## containers, the whole fault matrix and the GPU too
	@$(PYTHON_TOOL) scripts/run_tests.py --full $(ARGS)

check: venv ## lint, types, import contracts, house sizes, generated pages
	@scripts/check.sh

lint: check ## the same as check

format: venv ## format the Python code and the scripts
	@.venv/bin/ruff check --quiet --fix-only . && .venv/bin/ruff format . && .venv/bin/shfmt -i 2 -ci -w scripts .ci

docs: venv ## write the reference pages, run the notebook, build the documentation site into site/
	@$(PYTHON_TOOL) scripts/reference_docs.py
	@$(PYTHON_TOOL) scripts/run_images.py
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet && echo "site/index.html"

lock: venv ## refresh every requirements lock
	@scripts/lock_requirements.sh

bench: venv ## list the benchmarks, or run one: make bench ARGS=bench/packing.py
	@$(if $(ARGS),$(PYTHON_TOOL) $(ARGS),ls bench/[a-z]*.py bench/gpu/[a-z]*.py)

gpu-bundle: ## what a GPU machine without a network lacks, for its PYTHON (3.12): docs/hardware.md
	@env -u PYTHON scripts/local_setup.sh # whose PYTHON is the interpreter of .venv
	@$(PYTHON_TOOL) -m bench.gpu.bundle --python $(PYTHON)

clean: ## remove what tools left behind; data/, outputs/ and .venv stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .cache/tests *.egg-info
	@find workloads tests scripts bench -name __pycache__ -type d -prune -exec rm -rf {} +
