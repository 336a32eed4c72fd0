# Everything runs in .venv, which is made on first use and remade when the requirements change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

FUZZ_SECONDS ?= 60

.PHONY: run test check fuzz lock audit demo-model evaluate hour-test openapi ray parity bench overload soak clean

run: $(VENV)/.installed  ## Serve on HOST and PORT (127.0.0.1:8000)
	$(BIN)/python api.py

test: $(VENV)/.installed-ray  ## Lint, type check and test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.installed-ray  ## Lint and type check alone
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

demo-model: $(VENV)/.installed-dev  ## Train the bundled model anew (espeak-ng; an hour and a half)
	$(BIN)/python -m training.train

evaluate: $(VENV)/.installed-dev  ## Print the demo model's error on speech it has not heard
	$(BIN)/python -m training.evaluate

hour-test: $(VENV)/.installed-dev  ## Print the token error of the seams in hour-long files
	$(BIN)/python -m bench.hour

openapi: $(VENV)/.installed-dev  ## Write openapi.json anew from the routes
	$(BIN)/python -m tests.openapi_file

ray: $(VENV)/.installed-ray  ## Serve two copies of the demo model, or of MODEL, on Ray
	env MODEL=$(or $(MODEL),demo) $(BIN)/python -m deploy.ray_local

parity: $(VENV)/.installed-dev  ## Print the largest differences from FunASR
	$(BIN)/python -m bench.parity

bench: $(VENV)/.installed-bench  ## Compare with peers and print the speed (half an hour)
	$(BIN)/python -m bench.compare $(BENCH_ARGS)
	$(BIN)/python -m bench.overhead $(BENCH_ARGS)
	$(BIN)/python -m bench.scaling $(BENCH_ARGS)
	$(BIN)/python -m bench.precision
	$(BIN)/python -m bench.gpu
	$(BIN)/python -m bench.gpu_http $(BENCH_ARGS)

overload: $(VENV)/.installed-dev  ## Print what holds at 10 times the load: fake engine, then MODEL_DIR
	$(BIN)/python -m bench.overload $(BENCH_ARGS)
	$(BIN)/python -m bench.overload --engine model $(if $(MODEL_DIR),--model $(MODEL_DIR)) $(BENCH_ARGS)
	$(BIN)/python -m bench.fairness $(if $(MODEL_DIR),--model $(MODEL_DIR)) $(BENCH_ARGS)

soak: $(VENV)/.installed-dev  ## Look for leaks over 20,000 requests; redraw docs/soak.svg (minutes)
	$(BIN)/python -m bench.soak --svg docs/soak.svg $(BENCH_ARGS)

fuzz: $(VENV)/.installed-fuzz  ## Look for inputs that break something (FUZZ_SECONDS for each part)
	$(BIN)/python -m fuzz.audio -max_total_time=$(FUZZ_SECONDS)
	$(BIN)/python -m fuzz.multipart -max_total_time=$(FUZZ_SECONDS)
	$(BIN)/python -m fuzz.openapi $(FUZZ_SECONDS)

lock: $(VENV)/.installed-supply  ## Write requirements.lock anew: the image's versions and their hashes
	$(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.12 \
		--python-platform x86_64-unknown-linux-gnu --custom-compile-command "make lock" \
		$(LOCK_ARGS) -o requirements.lock requirements.txt

audit: $(VENV)/.installed-supply  ## Look up known weaknesses in the versions of requirements.lock
	$(BIN)/python -m deploy.audit $(AUDIT_ARGS)

$(VENV)/.installed-supply: requirements-supply.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements-supply.txt
	touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed-dev requirements-fuzz.txt
	$(PIP) install --quiet -r requirements-fuzz.txt
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev requirements-bench.txt
	$(PIP) install --quiet -r requirements-bench.txt
	touch $@

$(VENV)/.installed-ray: $(VENV)/.installed-dev requirements-ray.txt
	$(PIP) install --quiet -r requirements-ray.txt
	touch $@

$(VENV)/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements-dev.txt
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
