# Every target works alone in a fresh clone: Python >= 3.11, git and make are all that is needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS := $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))')

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OMP_NUM_THREADS := 1

.PHONY: env demo test check slow deploy-test bench faults fuzz clean

env: $(STAMP)  ## create .venv with the pinned set, development extras included

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.11 or so" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## EMS-FL against the synchronous baseline on real data
	$(BIN)/fedexperts demo --out runs/demo --force

test: $(STAMP)  ## the tests, without network
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

slow: $(STAMP)  ## the tests that take minutes
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

deploy-test: $(STAMP)  ## deployments of real processes that `make test` has no time for; minutes
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow --numprocesses 2 --dist worksteal --durations 10 tests/deploy

faults: $(STAMP)  ## signals lost at every await, uploads cut in two, processes killed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m '' -k 'cut or kill or lost or longer_than or ctrl_c or any_plan' -v

fuzz: $(STAMP)  ## tens of thousands of files made wrong, for every reader; minutes
	$(BIN)/python tests/fuzz.py

check: $(STAMP)  ## lint, types, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/check.py

bench: $(STAMP)  ## every figure that the docs claim; hours
	rm -rf runs/bench-*
	$(BIN)/python benchmarks/simulator.py
	$(BIN)/python benchmarks/simulator_peers.py
	$(BIN)/python benchmarks/jobs.py
	$(BIN)/python benchmarks/demo.py --plan round-robin
	$(BIN)/python benchmarks/demo.py --plan orbit --out runs/bench-orbit
	$(BIN)/python benchmarks/passes.py
	$(BIN)/python benchmarks/bound.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/aggregate.py
	$(BIN)/python benchmarks/ledger.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/lora.py
	$(BIN)/python benchmarks/moe.py
	$(BIN)/python benchmarks/deploy.py --throughput --memory --rehearsal
	$(BIN)/python benchmarks/deploy_traps.py
	-$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/uplink.py
	$(BIN)/python benchmarks/tasks.py
	$(BIN)/python benchmarks/alignment.py
	$(BIN)/python benchmarks/split.py
	$(BIN)/python benchmarks/moments.py
	$(BIN)/python benchmarks/extractor.py
	$(BIN)/python benchmarks/contrast.py
	$(BIN)/python benchmarks/gates.py
	$(BIN)/python benchmarks/network_question.py --out runs/bench-question --jobs 2
	$(BIN)/python benchmarks/peers.py --faults --links
	$(BIN)/python benchmarks/rederive.py
	$(BIN)/python benchmarks/tune.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache runs
