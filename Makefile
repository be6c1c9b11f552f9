# Entry points for newcomers, developers and CI. `make help` lists them; each target sets up what it needs.
#
# One virtual environment per Python. One stamp file in it records what is installed, another when the extension
# modules were built. Both carry the time at which that work BEGAN, so an edit made meanwhile is never missed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

PY := $(VENV)/bin/python
# An explicit PYTHON is the only candidate; otherwise the first one that is new enough wins.
CANDIDATES := $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.14 python3.13 python3.12 python3.11)
INSTALL := WATERSHED_MW_PURE=1 $(PY) -m pip install --quiet --no-build-isolation
TYPES := $(shell find watershed_mw -name '*.pxd')
SOURCES := $(TYPES) $(wildcard $(TYPES:.pxd=.py))
# The second run of the suite covers only what depends on the build, not how servers start and stop.
PURE_SKIPS := --ignore=tests/interop --ignore=tests/test_project.py --ignore=tests/test_docs.py \
    --ignore=tests/test_docs_pages.py --ignore=tests/test_docs_wsgi.py --ignore=tests/doors/servers \
    --ignore=tests/terminal --ignore=tests/soak
LOGS := build/logs
CONFORMANCE = $(PY) -m tests.autobahn
# Exit status without a Python 2.7, which Autobahn needs: it prints one line, and nothing counts as passed.
NOT_RUN := 77

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help demo test test-quick test-all check format build autobahn autobahn-ci bench bench-wsgi bench-relays bench-clients bench-micro coverage fuzz soak asan clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  (PYTHON=... selects the interpreter, VENV=... the environment; ARGS=... is passed to pytest)"

demo: $(VENV)/.demo $(VENV)/.built ## a page that talks to a Starlette echo and a Flask echo
	@$(PY) -m examples.demo $(ARGS)

test: $(VENV)/.dev $(VENV)/.built ## the test suite, on the compiled and the interpreted build in parallel
	@build=$$($(PY) -c 'import watershed_mw; print(watershed_mw.implementation)'); \
	echo "== tests, $$build build, $$($(PY) -VV)"; \
	$(WITHOUT_PEERS) \
	if [ "$$build" = interpreted ]; then \
	    WATERSHED_MW_PURE=1 $(PY) -m pytest $(ARGS); \
	    echo "== no extension modules here: that run used the interpreted build; the compiled one was not tested"; \
	    exit; \
	fi; \
	mkdir -p $(LOGS); \
	WATERSHED_MW_PURE=1 $(PY) -m pytest -o cache_dir=$(LOGS)/pytest $(PURE_SKIPS) $(ARGS) >$(LOGS)/interpreted.log 2>&1 & \
	beside=$$!; trap 'kill $$beside 2>/dev/null || true' EXIT; \
	compiled=0; $(PY) -m pytest $(ARGS) || compiled=$$?; \
	echo "== tests, WATERSHED_MW_PURE=1"; \
	interpreted=0; wait $$beside || interpreted=$$?; cat $(LOGS)/interpreted.log; \
	exit $$((compiled ? compiled : interpreted))

# Most tests wait more than they compute, so four processes run at once. The tests of the core load both builds whichever
# is selected; of the rest, what depends on the build is tests/connections.
QUICK := $(PY) -m pytest -q -p no:cacheprovider -m 'not programs and not slow'
test-quick: $(VENV)/.dev $(VENV)/.built ## in two minutes: the tests that start no programs and take no half second each
	@mkdir -p $(LOGS); jobs=(); trap 'kill "$${jobs[@]}" 2>/dev/null || true' EXIT; \
	beside() { local log=$(LOGS)/quick-$$1.log; shift; "$$@" >"$$log" 2>&1 & jobs+=($$!); }; \
	beside integrations $(QUICK) $(ARGS) tests/doors; \
	beside connections $(QUICK) $(ARGS) tests/connections; \
	beside interpreted env WATERSHED_MW_PURE=1 $(QUICK) $(ARGS) tests/connections; \
	failed=0; $(QUICK) $(ARGS) --ignore=tests/doors --ignore=tests/connections || failed=$$?; \
	for job in "$${jobs[@]}"; do wait "$$job" || failed=$$?; done; \
	tail -n +1 $(LOGS)/quick-{integrations,connections,interpreted}.log; \
	exit $$failed

# Newcomers need not install Node, Chromium, nginx and Caddy; skipped tests are announced. CI skips nothing.
define WITHOUT_PEERS
if [ "$${CI:-}" != true ]; then \
    if ! { command -v node && command -v npm; } >/dev/null; then export WATERSHED_MW_NO_NODE=1; \
        echo "== NOT RUN: tests against node-watershed and ws (they need node and npm)"; fi; \
    if ! command -v chromium >/dev/null; then export WATERSHED_MW_NO_BROWSER=1; \
        echo "== NOT RUN: tests in a browser (they need chromium)"; fi; \
    if ! { command -v nginx && command -v caddy; } >/dev/null; then export WATERSHED_MW_NO_PROXIES=1; \
        echo "== NOT RUN: tests behind proxies (they need nginx and caddy)"; fi; \
fi;
endef

# Prints "tag version path" for a CPython that is new enough, otherwise nothing.
define PROBE
import sys, sysconfig
if sys.version_info >= (3, 11) and sys.implementation.name == "cpython":
    threading = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    print("%d.%d%s" % (*sys.version_info[:2], threading), "%d.%d.%d" % sys.version_info[:3], sys.executable)
endef
export PROBE

test-all: ## the test suite on every CPython 3.11+ on PATH or under pyenv, each in its own environment
	@mkdir -p $(LOGS); failed=0; \
	candidates() { \
	    for minor in {11..20}; do type -ap python3.$$minor python3.$${minor}t || true; done; \
	    type -ap python3 || true; \
	    if command -v pyenv >/dev/null; then ls -d "$$(pyenv root)"/versions/*/bin/python3 || true; fi; \
	}; \
	found=$$(candidates 2>/dev/null | while read -r python; do "$$python" -c "$$PROBE" 2>/dev/null || true; done \
	    | sort -k2,2Vr | awk '!seen[$$1]++' | sort -k1,1V); \
	if [ -z "$$found" ]; then echo "no CPython 3.11 or newer was found on PATH or under pyenv"; exit 1; fi; \
	while read -r tag version python; do \
	    log=$(LOGS)/test-$$tag.log; start=$$SECONDS; \
	    if $(MAKE) --no-print-directory test VENV=.venv-$$tag PYTHON="$$python" >"$$log" 2>&1 </dev/null; \
	    then verdict=passed; else verdict=FAILED; failed=1; tail -n 60 "$$log"; fi; \
	    echo "$$tag ($$version): $$verdict in $$((SECONDS - start)) s:" \
	        "$$(grep -E '^=+ .*(passed|failed|error).* in ' "$$log" | tr -d '=' | xargs -d '\n' echo || true)"; \
	done <<<"$$found"; \
	exit $$failed

check: $(VENV)/.dev ## ruff (lint and format) and mypy --strict, on the package, tests, benchmarks and examples
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy watershed_mw tests benchmarks examples

format: $(VENV)/.dev ## apply ruff's fixes and format the code
	$(PY) -m ruff check --fix-only --quiet .
	$(PY) -m ruff format .

build: $(VENV)/.built ## compile the extension modules in place

autobahn: $(VENV)/.dev $(VENV)/.built ## all 517 Autobahn cases against every integration, both builds (needs Python 2.7)
	@$(CONFORMANCE) $(ARGS) || test $$? -eq $(NOT_RUN)

autobahn-ci: $(VENV)/.dev $(VENV)/.built ## the subset of Autobahn cases that CI runs, both builds
	@$(CONFORMANCE) --subset --door raw --door uvicorn --door client $(ARGS) || test $$? -eq $(NOT_RUN)
	@# The WSGI integration adds only the socket handover to the connections above, and the proxy parses no messages.
	@$(CONFORMANCE) --subset --door wsgi --door proxy --build compiled $(ARGS) || test $$? -eq $(NOT_RUN)

bench: $(VENV)/.dev $(VENV)/.built ## every integration compared with other packages and the limit: tables and plots in docs/
	@$(PY) -m benchmarks --out docs $(ARGS)

bench-wsgi: $(VENV)/.dev $(VENV)/.built ## the WSGI integration compared with flask-sock: CPU and memory
	@$(PY) -m benchmarks.wsgi $(ARGS)

bench-relays: $(VENV)/.dev $(VENV)/.built ## the proxy compared with nginx and HAProxy, if installed; a table in docs/
	@$(PY) -m benchmarks.relays --docs docs $(ARGS)

bench-clients: $(VENV)/.dev $(VENV)/.built ## the client compared with picows and websockets; a table in docs/
	@$(PY) -m benchmarks.clients --docs docs $(ARGS)

bench-micro: $(VENV)/.dev $(VENV)/.built ## micro-benchmarks of codec, masking, handshake and deflate, on both builds
	@$(PY) -m pytest -q --benchmark-storage=build/benchmarks/micro benchmarks/micro/bench_core.py $(ARGS)

coverage: $(VENV)/.dev $(VENV)/.built ## branch coverage of each module, on the interpreted build
	@mkdir -p build/coverage
	WATERSHED_MW_PURE=1 $(PY) -m coverage run -m pytest $(PURE_SKIPS) $(ARGS)
	$(PY) -m coverage report

SECONDS ?= 60
fuzz: $(VENV)/.fuzz $(VENV)/.built ## fuzzing for a minute, or SECONDS=...; with atheris if it can be installed
	@$(PY) -m tests.fuzz --seconds $(SECONDS) $(ARGS)

soak: $(VENV)/.dev $(VENV)/.built ## every integration under load for a minute, or SECONDS=...: nothing lost, nothing leaked
	@$(PY) -m tests.soak --seconds $(SECONDS) $(ARGS)

asan: $(VENV)/.dev ## the tests of core and connections under AddressSanitizer and UBSan (gcc, Linux)
	@PYTHON=$(PY) tests/sanitizers/run $(ARGS)

clean: ## remove everything built or installed here
	rm -rf build dist .venv .venv-* *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf tests/support/parties/node_modules
	rm -rf .autobahn
	find watershed_mw tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
	find watershed_mw '(' -name '*.so' -o -name '*.pyd' ')' -delete

$(VENV)/.base:
	@for python in $(CANDIDATES); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	    echo "watershed_mw needs Python 3.11 or newer, found none among: $(CANDIDATES)"; \
	    echo "Name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; \
	fi; \
	echo "== $(VENV): $$("$$found" -VV)"; \
	"$$found" -m venv --clear $(VENV)
	@$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	    | $(PY) -m pip install --quiet -r /dev/stdin
	@touch $@

# pip installs only metadata and dependencies. The rule below compiles, so that its one line of output stays visible.
$(VENV)/.demo: pyproject.toml setup.py | $(VENV)/.base
	@touch $@.begun
	$(INSTALL) --editable '.[demo]'
	@mv $@.begun $@

$(VENV)/.dev: pyproject.toml setup.py | $(VENV)/.base
	@touch $@.begun
	$(INSTALL) --editable '.[test,check,bench]'
	@mv $@.begun $@

# atheris has no wheels for many systems; without it the targets still run, and say so.
$(VENV)/.fuzz: pyproject.toml | $(VENV)/.dev
	@touch $@.begun
	@$(INSTALL) --editable '.[fuzz]' || echo "== atheris cannot be installed here; inputs will be random"
	@mv $@.begun $@

$(VENV)/.built: setup.py $(SOURCES) | $(VENV)/.base
	@touch $@.begun
	@$(PY) setup.py --quiet build_ext --inplace
# If the build fell back there is no stamp: the next run tries again, and says so again.
	@suffix=$$($(PY) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))'); \
	if compgen -G "watershed_mw/core/*$$suffix" >/dev/null; then mv $@.begun $@; else rm $@.begun; fi
