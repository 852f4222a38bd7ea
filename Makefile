# The words of every day; the work is in scripts/.
.PHONY: setup check test format quickstart

setup:
	bash scripts/setup.sh

test: # lint and tests: what runs on every change
	bash scripts/test.sh

check: # lint alone
	bash scripts/setup.sh
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format:
	bash scripts/setup.sh
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

quickstart:
	bash scripts/quickstart.sh
