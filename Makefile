# Everything a fresh Debian 12 needs beyond python3 and make is installed by the targets themselves.

# A distribution's Python is built with profile-guided optimisation, which saves a tenth of the CPU;
# the one that comes first in PATH often is not.
PYTHON ?= $(or $(shell /usr/bin/python3 -c 'import sys; \
	print("/usr/bin/python3" if sys.version_info >= (3, 11) else "")' 2>/dev/null),python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# uv takes seconds where pip takes a minute; pip knows a machine's own index, where uv cannot help.
UV := $(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python
INSTALL = install() { $(UV) "$$@" || $(PIP) install "$$@"; }; install --no-deps --require-hashes -r
# Debian packages that the tests drive: a Redis, and phones that are not our own stack.
TEST_PACKAGES := redis-server sip-tester baresip-core linphone-cli chromium iproute2 iptables faketime
TEST_PACKAGES += sngrep
# Debian's npm is large, and cannot stand beside a node from elsewhere, which brings one along.
TEST_PACKAGES += $(if $(shell command -v npm),,nodejs npm)
BROWSER := tests/e2e/browser

.DELETE_ON_ERROR:
.PHONY: help setup run demo test bench compile tune uncompile
.PHONY: fuzz soak check format lint types packages lock clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

# Whoever has compiled once gets compiled anew what has changed since.
COMPILED := $(wildcard .venv/compiled.stamp)

setup: .venv/runtime.stamp $(COMPILED) ## Make .venv with what the server needs

run: .venv/runtime.stamp $(COMPILED) ## Start the server on config/sipush.toml
	@mkdir -p run
	@exec $(BIN)/sipush run --banner --config config/sipush.toml

demo: .venv/runtime.stamp ## Watch a killed phone ring, on loopback
	@exec $(BIN)/sipush demo

test: .venv/dev.stamp $(COMPILED) packages $(BROWSER)/node_modules/.stamp ## Run all tests
	@# Meanwhile; the tests of Asterisk wait for it, and tell what went wrong.
	@.ci/fetch-asterisk run/asterisk >/dev/null 2>&1 &
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# BENCH="server --servers sqlite,kamailio-fm --operations register" measures only that.
BENCH ?= server
bench: .venv/dev.stamp $(COMPILED) ## Measure what operations cost, beside Kamailio if it is there
	@.ci/install-packages gcc libssl-dev redis-server
	@$(BIN)/python -m tests.bench $(BENCH)

compile: .venv/compiled.stamp ## Compile the busiest modules: about half the CPU

uncompile: ## Remove what compile made
	rm -rf build .venv/compiled.stamp
	find sipush -name '*.so' -delete

BUILD := $(BIN)/python config/compile.py --quiet build_ext --inplace
.venv/compiled.stamp: .venv/dev.stamp config/compile.py $(wildcard sipush/*.py sipush/*/*.py)
	@.ci/install-packages gcc python3-dev
	@echo "Compiling, which takes some minutes …"
	@find sipush -name '*.so' -delete
	@$(BUILD)
	@find sipush -name '*.so' -exec touch {} +  # those that came out as before keep their old time
	@touch $@

# Twice: from the load in between gcc learns which code runs, and lays that side by side. What is
# compiled to be watched is slow, and must not stay if we are stopped.
LOAD := $(BIN)/python -m tests.bench server --repeat 1 --results build/load
LOAD += --operations register,refresh,call,message,wake
tune: uncompile .venv/dev.stamp ## Compile them after two minutes of load to learn from: another tenth
	@.ci/install-packages gcc libssl-dev python3-dev
	@echo "Compiling twice, with two minutes of load in between: a quarter of an hour …"
	@set -e; trap 'find sipush -name "*.so" -delete' EXIT; trap 'exit 1' INT TERM; \
	CFLAGS=-fprofile-generate $(BUILD); \
	$(LOAD) --servers memory,sqlite$$(command -v redis-server >/dev/null && echo ,redis) >/dev/null; \
	$(LOAD) --servers memory --transport tcp >/dev/null; \
	CFLAGS='-fprofile-use -fprofile-partial-training -Wno-missing-profile' $(BUILD) --force; \
	trap - EXIT
	@touch .venv/compiled.stamp

# run/fuzz keeps the inputs that led somewhere new; run/crash-… is one that did harm.
SECONDS ?= 600
fuzz: .venv/dev.stamp ## Fuzz the parser for SECONDS (600)
	@mkdir -p run/fuzz
	$(BIN)/python -m tests.fuzz -max_total_time=$(SECONDS) -max_len=16384 -timeout=5 \
		-artifact_prefix=run/ run/fuzz tests/fuzz/corpus tests/sip/rfc4475

# run/soak.txt and run/soak.svg tell what happened.
MINUTES ?= 2
soak: .venv/dev.stamp packages ## Load a server for MINUTES (2) and let things fail
	@mkdir -p run
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --report run/soak

check: format lint types test ## Format check, lint, types and tests

format: .venv/dev.stamp
	$(BIN)/ruff format --check .

lint: .venv/dev.stamp
	$(BIN)/ruff check .

types: .venv/dev.stamp
	$(BIN)/mypy

packages:
	@.ci/install-packages $(TEST_PACKAGES)

# The phone that the browsers run. Nothing that it brings along is run to install it.
$(BROWSER)/node_modules/.stamp: $(BROWSER)/package-lock.json | packages
	@echo "Installing the browser's phone into $(BROWSER)/node_modules …"
	@npm ci --prefix $(BROWSER) --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# Each stamp is touched last, so whatever fails half-way is done again by the next call.
.venv/runtime.stamp: config/uv.lock config/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/install-packages python3-venv
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing what the server needs into .venv …"
	@$(PIP) install --no-deps --require-hashes -r config/uv.lock
	@$(INSTALL) config/requirements.lock
	@PYTHONWARNINGS=ignore $(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev.stamp: config/requirements-dev.lock .venv/runtime.stamp
	@echo "Installing what the tests need into .venv …"
	@$(INSTALL) config/requirements-dev.lock
	@touch $@

# setuptools builds the editable install, so it is pinned like the rest.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command 'make lock'
lock: .venv/runtime.stamp ## Pin the newest allowed versions of all dependencies
	echo 'uv>=0.13' | $(COMPILE) --upgrade - -o config/uv.lock
	echo 'setuptools>=77' | $(COMPILE) --upgrade pyproject.toml - -o config/requirements.lock
	echo 'setuptools>=77' | $(COMPILE) --upgrade pyproject.toml - --extra dev \
		-c config/requirements.lock -o config/requirements-dev.lock

clean: uncompile ## Remove everything that make made
	rm -rf .venv run *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf $(BROWSER)/node_modules
	find sipush tests -name __pycache__ -type d -exec rm -rf {} +
