PYTHON ?= .venv/bin/python

.PHONY: check docs

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) docs/generate.py --check
	$(PYTHON) -m mkdocs build --strict --quiet

docs:
	$(PYTHON) docs/generate.py
	$(PYTHON) -m mkdocs serve
