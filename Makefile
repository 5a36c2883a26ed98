# `make demo` and `make test` need nothing but Python 3.11 or newer: they install into .venv first.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
DEMO := outputs/demo
# make demo DEMO_ITERATIONS=20 is the smallest that goes through every step.
DEMO_ITERATIONS ?= 200
# make mlflow OUTPUT=outputs/tracked opens what a run there has recorded.
OUTPUT ?= outputs
MLFLOW_TRACKING_URI ?= sqlite:///$(OUTPUT)/mlruns.db

.PHONY: demo test test-all lint coverage bench bundle mlflow install

install: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	touch $@

demo: install
	$(PY) -m tools.demo.dataset --output_dir $(DEMO)/data
	for method in supervised bcp dbisl; do \
	    $(PY) -m scripts train demo cpu $$method --dataset_dir $(DEMO)/data --output_dir $(DEMO)/$$method \
	        --max_iterations $(DEMO_ITERATIONS) --resume never && \
	    $(PY) -m scripts evaluate --run $(DEMO)/$$method || exit 1; \
	done
	$(PY) -m scripts infer --run $(DEMO)/bcp --input_dir $(DEMO)/data/new_volumes --output_dir $(DEMO)/new_volumes --overwrite true
	$(PY) -m tools.demo.results --demo_dir $(DEMO) --iterations $(DEMO_ITERATIONS)

test: install
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not long" tests

test-all: install
	$(PY) -m pytest -q -n 2 --dist loadfile tests

lint: install
	$(PY) -m black --check --line-length 120 scripts tools tests benchmarks
	$(PY) -m ruff check scripts tools tests benchmarks
	$(PY) -m mypy
	$(PY) -m tools.format_configs --check

coverage: install
	$(PY) -m pytest -q -m "not long" --cov --cov-report=term tests

bench: install
	$(PY) -m benchmarks.run

bundle: install
	$(PY) -m tools.release.bundle

mlflow: install
	MLFLOW_DISABLE_TELEMETRY=true $(PY) -m mlflow ui --backend-store-uri $(MLFLOW_TRACKING_URI)
