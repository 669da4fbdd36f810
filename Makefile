# Every target runs tools/dev.py, which makes .venv on the first run. Without make, call it directly.
PYTHON ?= python3

.PHONY: demo test test-pure test-large bench bench-lake bench-growth bench-compaction bench-tools bench-adapters lint docs setup

demo:
	@$(PYTHON) tools/dev.py demo

test:
	@$(PYTHON) tools/dev.py test

test-pure:
	@$(PYTHON) tools/dev.py test-pure

test-large:
	@$(PYTHON) tools/dev.py test-large

bench:
	@$(PYTHON) tools/dev.py bench $(ARGS)

bench-lake:
	@$(PYTHON) tools/dev.py bench-lake $(ARGS)

bench-growth:
	@$(PYTHON) tools/dev.py bench-growth $(ARGS)

bench-compaction:
	@$(PYTHON) tools/dev.py bench-compaction $(ARGS)

bench-tools:
	@$(PYTHON) tools/dev.py bench-tools $(ARGS)

bench-adapters:
	@$(PYTHON) tools/dev.py bench-adapters $(ARGS)

lint:
	@$(PYTHON) tools/dev.py lint

docs:
	@$(PYTHON) tools/dev.py docs

setup:
	@$(PYTHON) tools/dev.py setup
