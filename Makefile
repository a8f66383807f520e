# Two commands do everything on a machine with Python 3.11+ and make: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: run test chaos model fuzz bench overload notebook lint constraints clean
.DELETE_ON_ERROR:

run: .venv/installed  ## the whole pipeline on this machine, with a simulated fleet; Ctrl-C stops it
	@$(BIN)/telemetry up --window 10s

test: .venv/installed-test .venv/tools  ## every test
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

chaos: .venv/installed-test  ## break a real pipeline for two minutes, then look for every event; ARGS="--hours 1 --seed 7"
	@$(BIN)/python -m tests.chaos $(ARGS)

model: .venv/installed-test  ## schedules of faults by the thousand, in memory; ARGS="--schedules 10000 --seed 1"
	@$(BIN)/python -m tests.simulation $(ARGS)

fuzz: .venv/installed-test  ## strangers at every door; ARGS="--minutes 10 --seed 3 --door bodies"
	@$(BIN)/python -m tests.fuzz $(ARGS)

bench: .venv/installed-test  ## cost and delays beside the limit of the machine, about 15 minutes; ARGS="w1 --repeats 3"
	@$(BIN)/python -m benchmarks $(ARGS)

overload: .venv/installed-test  ## five times what the worker takes, most of it by one device; ARGS="--seconds 60"
	@$(BIN)/python -m benchmarks.overload $(ARGS)

notebook: .venv/installed-notebook  ## the notebooks, in a browser
	$(BIN)/jupyter lab notebooks

lint: .venv/installed-test
	$(BIN)/ruff check .

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv (about a minute the first time)"
	@$(BIN)/python $(PIP) -c constraints.txt -e .
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[test]'
	@touch $@ .venv/installed

# promtool checks the alert rules, Alertmanager takes alerts. Debian has them; without root they are unpacked, not installed. Elsewhere
# their tests say that they are missing.
.venv/tools: Makefile | .venv/bin/python
	@mkdir -p $@
	@cd $@ && for each in prometheus:promtool prometheus-alertmanager:prometheus-alertmanager; do \
	  package=$${each%%:*} tool=$${each##*:}; \
	  command -v $$tool >/dev/null || test -x usr/bin/$$tool || { command -v apt-get >/dev/null && \
	  { apt-get download $$package || { apt-get update && apt-get download $$package; }; } >/dev/null 2>&1 && \
	  dpkg -x $${package}_*.deb . && rm -f $${package}_*.deb; } || echo "no $$tool: its tests are left out"; \
	done
	@touch $@

.venv/installed-notebook: pyproject.toml constraints.txt | .venv/bin/python
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[notebook]'
	@touch $@ .venv/installed

constraints:  ## the newest versions that pyproject.toml allows, for the tests to try
	@rm -rf .venv/newest && $(PYTHON) -m venv .venv/newest
	@.venv/newest/bin/python $(PIP) '.[test,notebook]'
	@{ sed '/^#/!d' constraints.txt; .venv/newest/bin/python -m pip freeze --disable-pip-version-check | grep -v '^telemetry-pipeline' | sort -f; } \
	  > .venv/newest/constraints.txt
	@mv .venv/newest/constraints.txt constraints.txt && rm -rf .venv/newest

clean:  ## remove the environment, not the data
	rm -rf .venv
