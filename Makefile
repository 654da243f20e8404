# `make serve` and `make test` do everything on a fresh machine.
FILE ?= examples/quickstart.yaml
ARGS ?=
# Of `make chaos`; a failure names its seed, and the same seed repeats the same plan.
CHAOS_SECONDS ?= 600
CHAOS_SEED ?= $(shell date +%s)

.PHONY: serve test chaos install lint format clean

serve: install
	@exec .venv/bin/aibrix-ray serve $(FILE) $(ARGS)

test: install lint
	@scripts/test.sh $(ARGS)

chaos: install
	AIBRIX_CHAOS_SECONDS=$(CHAOS_SECONDS) AIBRIX_CHAOS_SEED=$(CHAOS_SEED) \
		.venv/bin/python -m pytest tests/chaos -s $(ARGS)

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
