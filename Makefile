# `make serve` and `make test` do everything on a fresh machine.
FILE ?= examples/quickstart.yaml
ARGS ?=

.PHONY: serve test install lint format clean

serve: install
	@exec .venv/bin/aibrix-ray serve $(FILE) $(ARGS)

test: install lint
	.venv/bin/python -m pytest $(ARGS)

install:
	@scripts/setup.sh

lint: install
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: install
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

clean:
	rm -rf .venv build *.egg-info
