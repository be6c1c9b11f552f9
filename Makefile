# Everything that a newcomer, a developer or CI runs. `make help` lists it; each target does its own set-up.
#
# One virtual environment per Python. A stamp file in it says what has been installed, another when the extension
# modules were built: both carry the time at which their work BEGAN, so an edit made meanwhile is never missed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

PY := $(VENV)/bin/python
# A PYTHON that was asked for is the only candidate; otherwise the first that is new enough is taken.
CANDIDATES := $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.14 python3.13 python3.12 python3.11)
INSTALL := WATERSHED_MW_PURE=1 $(PY) -m pip install --quiet --no-build-isolation
TYPES := $(shell find watershed_mw -name '*.pxd')
SOURCES := $(TYPES) $(wildcard $(TYPES:.pxd=.py))
# The second run of the suite needs only what the choice of build can change: not how servers are started and stopped.
PURE_SKIPS := --ignore=tests/interop --ignore=tests/test_project.py --ignore=tests/test_docs.py \
    --ignore=tests/doors/test_servers.py --ignore=tests/doors/test_wsgi_servers.py \
    --ignore=tests/doors/test_wsgi_process.py --ignore=tests/doors/test_django.py --ignore=tests/test_docs_wsgi.py \
    --ignore=tests/doors/test_proxy_servers.py --ignore=tests/test_cli.py --ignore=tests/soak
LOGS := build/logs
CONFORMANCE = $(PY) -m tests.autobahn
# Without a Python 2.7 there is no Autobahn: it says so in one line, and nothing counts as passed.
NOT_RUN := 77

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help demo test test-all check format build autobahn autobahn-ci bench bench-wsgi bench-relays bench-clients bench-micro coverage fuzz soak asan clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  (PYTHON=... names the interpreter, VENV=... the environment, ARGS=... goes to pytest)"

demo: $(VENV)/.demo $(VENV)/.built ## one page that talks to a Starlette echo and a Flask echo
	@$(PY) -m examples.demo $(ARGS)

test: $(VENV)/.dev $(VENV)/.built ## the test suite on the compiled build, and beside it on the interpreted one
	@build=$$($(PY) -c 'import watershed_mw; print(watershed_mw.implementation)'); \
	echo "== tests, $$build build, $$($(PY) -VV)"; \
	$(WITHOUT_PEERS) \
	if [ "$$build" = interpreted ]; then \
	    WATERSHED_MW_PURE=1 $(PY) -m pytest $(ARGS); \
	    echo "== no extension modules here: that run WAS the interpreted build, the compiled one was not tested"; \
	    exit; \
	fi; \
	mkdir -p $(LOGS); \
	WATERSHED_MW_PURE=1 $(PY) -m pytest -o cache_dir=$(LOGS)/pytest $(PURE_SKIPS) $(ARGS) >$(LOGS)/interpreted.log 2>&1 & \
	beside=$$!; trap 'kill $$beside 2>/dev/null || true' EXIT; \
	compiled=0; $(PY) -m pytest $(ARGS) || compiled=$$?; \
	echo "== tests, WATERSHED_MW_PURE=1"; \
	interpreted=0; wait $$beside || interpreted=$$?; cat $(LOGS)/interpreted.log; \
	exit $$((compiled ? compiled : interpreted))

# A newcomer need not install Node, Chromium, nginx and Caddy; what is left out is said aloud, and CI may leave out nothing.
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

# Prints "tag version path" for a CPython that is new enough, nothing for any other.
define PROBE
import sys, sysconfig
if sys.version_info >= (3, 11) and sys.implementation.name == "cpython":
    threading = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    print("%d.%d%s" % (*sys.version_info[:2], threading), "%d.%d.%d" % sys.version_info[:3], sys.executable)
endef
export PROBE

test-all: ## the test suite on every CPython 3.11+ on PATH or under pyenv, one environment each
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

check: $(VENV)/.dev ## ruff (rules and format) and mypy strict, on the package, tests, benchmarks and examples
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy watershed_mw tests benchmarks examples

format: $(VENV)/.dev ## let ruff mend what it can and lay out the code
	$(PY) -m ruff check --fix-only --quiet .
	$(PY) -m ruff format .

build: $(VENV)/.built ## compile the extension modules in place

autobahn: $(VENV)/.dev $(VENV)/.built ## all 517 Autobahn cases against every door, both builds (needs Python 2.7)
	@$(CONFORMANCE) $(ARGS) || test $$? -eq $(NOT_RUN)

autobahn-ci: $(VENV)/.dev $(VENV)/.built ## the subset of the Autobahn cases that CI runs, both builds
	@$(CONFORMANCE) --subset --door raw --door uvicorn --door client $(ARGS) || test $$? -eq $(NOT_RUN)
	@# What a WSGI server adds to the connections above is the socket that it gives, and the proxy parses no frame.
	@$(CONFORMANCE) --subset --door wsgi --door proxy --build compiled $(ARGS) || test $$? -eq $(NOT_RUN)

bench: $(VENV)/.dev $(VENV)/.built ## every door beside its peers and the limit: ratios in one run, tables and plots in docs/
	@$(PY) -m benchmarks --out docs $(ARGS)

bench-wsgi: $(VENV)/.dev $(VENV)/.built ## the WSGI door beside flask-sock: CPU and memory, as ratios in one run
	@$(PY) -m benchmarks.wsgi $(ARGS)

bench-relays: $(VENV)/.dev $(VENV)/.built ## the proxy beside nginx and HAProxy, where they are installed: a table in docs/
	@$(PY) -m benchmarks.relays --docs docs $(ARGS)

bench-clients: $(VENV)/.dev $(VENV)/.built ## the client beside picows' and websockets': a table in docs/
	@$(PY) -m benchmarks.clients --docs docs $(ARGS)

bench-micro: $(VENV)/.dev $(VENV)/.built ## codec, masking, handshake and deflate alone, on both builds
	@$(PY) -m pytest -q --benchmark-storage=build/benchmarks/micro benchmarks/micro/bench_core.py $(ARGS)

coverage: $(VENV)/.dev $(VENV)/.built ## branch coverage of each module, interpreted build
	@mkdir -p build/coverage
	WATERSHED_MW_PURE=1 $(PY) -m coverage run -m pytest $(PURE_SKIPS) $(ARGS)
	$(PY) -m coverage report

SECONDS ?= 60
fuzz: $(VENV)/.fuzz $(VENV)/.built ## a minute of fuzzing, or SECONDS=...; with atheris where it can be installed
	@$(PY) -m tests.fuzz --seconds $(SECONDS) $(ARGS)

soak: $(VENV)/.dev $(VENV)/.built ## every door under load for a minute, or SECONDS=...: nothing lost, nothing left behind
	@$(PY) -m tests.soak --seconds $(SECONDS) $(ARGS)

asan: $(VENV)/.dev ## tests of core and connections on extension modules with AddressSanitizer and UBSan (gcc, Linux)
	@PYTHON=$(PY) tests/sanitizers/run $(ARGS)

clean: ## remove all that was built or installed here
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
	    echo "watershed_mw needs Python 3.11 or newer, and none of these is: $(CANDIDATES)"; \
	    echo "Name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; \
	fi; \
	echo "== $(VENV): $$("$$found" -VV)"; \
	"$$found" -m venv --clear $(VENV)
	@$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	    | $(PY) -m pip install --quiet -r /dev/stdin
	@touch $@

# pip sees to metadata and dependencies only: compiling is the next rule's, where its one line can be read.
$(VENV)/.demo: pyproject.toml setup.py | $(VENV)/.base
	@touch $@.begun
	$(INSTALL) --editable '.[demo]'
	@mv $@.begun $@

$(VENV)/.dev: pyproject.toml setup.py | $(VENV)/.base
	@touch $@.begun
	$(INSTALL) --editable '.[test,check,bench]'
	@mv $@.begun $@

# atheris has no wheels for many systems; the targets run without it as well, and say so.
$(VENV)/.fuzz: pyproject.toml | $(VENV)/.dev
	@touch $@.begun
	@$(INSTALL) --editable '.[fuzz]' || echo "== atheris cannot be installed here: inputs will be random"
	@mv $@.begun $@

$(VENV)/.built: setup.py $(SOURCES) | $(VENV)/.base
	@touch $@.begun
	@$(PY) setup.py --quiet build_ext --inplace
# Where the build fell back there is no stamp: it is tried again next time, and says so again.
	@suffix=$$($(PY) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))'); \
	if compgen -G "watershed_mw/core/*$$suffix" >/dev/null; then mv $@.begun $@; else rm $@.begun; fi
