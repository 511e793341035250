PYTHON ?= .venv/bin/python
export NO_MKDOCS_2_WARNING = 1

.PHONY: check docs

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) docs/generate.py --check
	$(PYTHON) -m mkdocs build --strict

docs:
	$(PYTHON) docs/generate.py
	$(PYTHON) -m mkdocs serve
