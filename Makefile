# The set-up of a fresh machine. Everything else is an Invoke task: `.venv/bin/invoke --list`.
PYTHON ?= python3

.PHONY: deploy-local test lock
.SILENT:

deploy-local: .venv/ready
	.venv/bin/invoke deploy-local $(if $(PROFILE),--profile $(PROFILE))

test: .venv/ready
	.venv/bin/python -m pytest --numprocesses logical --maxprocesses 4 tests/unit
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile -m 'not alone' tests/integration
	.venv/bin/python -m pytest -m alone tests/integration

# Pin what requirements.in asks for, and the tools that check the manifests, with hashes. Needs uv.
lock:
	for name in requirements tests/integration/kubernetes/tools; do \
	  uv pip compile --quiet --universal --python-version 3.11 --no-header --generate-hashes $$name.in -o $$name.txt || exit 1; \
	done

.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + "; name another with `make PYTHON=python3.11`")'
	echo "making .venv, once; this takes a minute or two"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.txt
	touch .venv/ready
