# `make demo` and `make test` need nothing but Python 3.11 or newer: they install into .venv first.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
RUN := $(PY) -m monai.bundle run
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
	$(RUN) --args_file configs/presets/demo_dbisl.json --max_iterations $(DEMO_ITERATIONS)
	$(RUN) --args_file configs/presets/demo_supervised.json --max_iterations $(DEMO_ITERATIONS)
	$(RUN) --args_file configs/presets/demo_dbisl_evaluate.json
	$(RUN) --args_file configs/presets/demo_supervised_evaluate.json
	$(RUN) --args_file configs/presets/demo_inference.json
	$(PY) -m tools.demo.report --demo_dir $(DEMO) --iterations $(DEMO_ITERATIONS)

test: install
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not long" tests

test-all: install
	$(PY) -m pytest -q -n 2 --dist loadfile tests

lint: install
	$(PY) -m black --check --line-length 120 scripts tools tests benchmarks
	$(PY) -m ruff check scripts tools tests benchmarks
	$(PY) -m mypy

coverage: install
	$(PY) -m pytest -q -m "not long" --cov --cov-report=term tests

bench: install
	$(PY) -m benchmarks.run

bundle: install
	$(PY) -m tools.release.bundle

mlflow: install
	MLFLOW_DISABLE_TELEMETRY=true $(PY) -m mlflow ui --backend-store-uri $(MLFLOW_TRACKING_URI)
