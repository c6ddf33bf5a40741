# The tasks of this repository. `make` alone lists them.
PYTHON ?= .venv/bin/python

.PHONY: help setup hooks test fast lint format types docs docs-archive vm slow pythons coverage wheel changelog bench figures clean

help:                ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:               ## make .venv with everything for development (installs Debian packages where missing)
	bash .ci/prepare --extras dev

hooks:               ## lint and check types on every commit
	$(PYTHON) -m pre_commit install

test:                ## the everyday tests (about five minutes)
	bash tests/run -q

fast:                ## the tests that start nothing (seconds): values, plans, layers, documentation
	$(PYTHON) -m pytest -q tests/test_layers.py tests/test_docs.py tests/mounts/test_values.py tests/seccomp/test_policy.py

lint:                ## ruff, mypy, pyright
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy && $(PYTHON) -m pyright

format:              ## let ruff format and fix
	$(PYTHON) -m ruff check --fix . && $(PYTHON) -m ruff format .

docs:                ## build the documentation into docs/_build
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs docs/_build

docs-archive:        ## the documentation as one archive for any static host: dist/isolate-docs.tar.gz
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs docs/_build/html
	mkdir -p dist && tar -czf dist/isolate-docs.tar.gz --exclude=.doctrees --exclude=.buildinfo -C docs/_build html

vm:                  ## the tests that need cgroup v2 or systemd, in a virtual machine (about twelve minutes)
	bash tests/vm/run

slow:                ## the long lane: faults, kills, many (hours)
	HYPOTHESIS_PROFILE=default bash tests/run -q -m slow

pythons:             ## the everyday tests of one abi3 wheel under every Python on this machine
	bash tests/pythons

coverage:            ## the share of the C code's branches that the tests take (about twenty minutes)
	bash tests/coverage/run

wheel:               ## the sdist, and from it the wheel, into dist/
	$(PYTHON) -m build --outdir dist .

changelog:           ## what the next release's section will look like
	$(PYTHON) -m towncrier build --draft --version next

bench:               ## how long a start takes beside C programs, bubblewrap and others (two minutes)
	$(PYTHON) -m benchmarks --quick

figures:             ## measure everything, and write the documentation's page of figures (quiet machine, root)
	$(PYTHON) -m benchmarks --docs

clean:               ## remove what was built
	rm -rf build dist docs/_build isolate/_launcher isolate/*.so *.egg-info
