# Needs a Python 3 and make, nothing else. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo unit test test-unit test-contract test-mlx test-e2e prove check hooks fix bench bench-kv bench-serving bench-structured stress-pool stress-kv fuzz serve footprint train evaluate wheel lock clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv: the machine's, or one of our own, installed with pip into a folder of its own.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
READY := $(VENV)/.ready
RUN := $(BIN)/python -P
PEERS := build/bench/venv
# Real recordings for the ring that needs them; not in the repository.
DUET_TEST_AUDIO ?= $(wildcard ../shared/audio)
DUET_TEST_EVAL ?= $(wildcard ../shared/eval)
# Bytecode is kept, but not beside the sources: processes start in half of the time.
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/pycache
unexport PYTHONDONTWRITEBYTECODE
# The certificates of the system, so that a company's own authority is trusted.
export UV_SYSTEM_CERTS ?= 1

help: ## list the targets
	@grep -hE '^[a-z0-9 -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9 -]+):[^#]*## /  make \1|/' | column -t -s '|'

demo: $(READY) ## start everything with the embedded models and show it: chat, embeddings, a transcription, a meeting
	$(RUN) -m duet.demo

unit: $(READY) ## the inner loop: tests that need no process and no model, state machines with a quarter of their examples
	$(BIN)/python tests/rings.py unit

test: $(READY) ## everything that the lock alone can run, ring by ring
	$(BIN)/python tests/rings.py test

test-unit test-contract test-mlx test-e2e: test-%: $(READY) ## one ring of `make test`
	$(BIN)/python tests/rings.py test $*

prove: $(READY) ## what needs more than the lock: real recordings, Debian's tools, uv for the wheel; and the long tests
	$(BIN)/python tests/rings.py prove --audio "$(DUET_TEST_AUDIO)" --eval "$(DUET_TEST_EVAL)"

check: $(READY) ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/duet --help > /dev/null

hooks: $(READY) ## format, lint and import directions before each commit of this clone
	$(BIN)/pre-commit install

fix: $(READY) ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## decode speed of the worker against the bare loop
	$(RUN) -m benchmarks.decode

bench-kv: $(READY) $(PEERS)/.ready ## the prefix cache beside mlx_vlm.server and mlx_lm.server: a quarter of an hour
	$(RUN) -m benchmarks.kv.prefix
	$(RUN) -m benchmarks.kv.restore
	$(RUN) -m benchmarks.kv.agents

bench-serving: $(READY) $(PEERS)/.ready ## streams over HTTP beside other servers, stalls, and priorities: a quarter of an hour
	$(RUN) -m benchmarks.serving.streams
	$(RUN) -m benchmarks.serving.stall
	$(RUN) -m benchmarks.serving.priority

bench-structured: $(READY) ## 1,000 random schemas and 300 expressions: every answer is of its form, and what that costs; minutes
	$(RUN) -m benchmarks.structured

stress-pool: $(READY) ## four models, memory for two, random clients for five minutes: clean answers only, nothing left
	$(RUN) -m tests.stress.pool

stress-kv: $(READY) ## 200 times kill -9 inside writes of the KV cache: nothing may be broken; minutes
	$(RUN) -m tests.stress.kv_kills

fuzz: $(READY) ## 3,000 damaged media files and 1,000 damaged model folders: no service dies, every answer is right; an hour
	$(RUN) -m tests.stress.fuzz

# The other servers in an environment of their own: mlx-lm is no dependency of ours.
$(PEERS)/.ready: benchmarks/peers.txt | $(UV)
	$(UV) venv --quiet --allow-existing --python ">=3.11" $(PEERS)
	$(UV) pip install --quiet --python $(PEERS)/bin/python -r benchmarks/peers.txt
	@touch $@

footprint: $(READY) ## memory of all processes, less the weights
	$(RUN) -m benchmarks.footprint

# An environment of its own: torch is in none of the shipped packages.
train: $(UV) ## make the embedded models anew: hours on two cores; needs espeak-ng, wamerican and wordnet-base
	$(UV) venv --quiet --allow-existing --python ">=3.11" build/train/venv
	$(UV) pip install --quiet --python build/train/venv/bin/python -r training/requirements.txt
	build/train/venv/bin/python -m training
	$(MAKE) --no-print-directory evaluate

evaluate: $(READY) ## measure the embedded models as they lie there and write their README
	$(RUN) -m training.evaluate $(if $(DUET_TEST_EVAL),--eval "$(DUET_TEST_EVAL)")

serve: $(READY) ## engine, router and meeting worker in the foreground, with the embedded models
	$(BIN)/duet up --embedded

wheel: $(READY) ## build the wheel into dist/
	$(UV) build --wheel --no-build-isolation --python $(BIN)/python -q -o dist

lock: $(UV) ## resolve requirements.lock anew: names, versions and hashes, no addresses
	MACOSX_DEPLOYMENT_TARGET=14.0 $(UV) pip compile --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --override requirements.overrides pyproject.toml --group dev -o requirements.lock -q

clean: ## remove what the build made
	rm -rf $(VENV) .uv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.uv/bin/uv:
	($(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv) \
	  || $(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv # Debian may have pip and no venv

# uv takes the machine's Python if it is 3.11 or newer, and fetches 3.12 where it is older, as on a bare Mac.
$(READY): requirements.lock pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python ">=3.11" $(VENV)
	$(UV) pip sync --quiet --require-hashes --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $@
