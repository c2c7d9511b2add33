# make sweep     install, run the quick ablation on real images, write the report
# make test      install with test extras, linter, type checker, fast tests (about five minutes on two cores)
# make test-slow integration tests and slow tests (three quarters of an hour on two cores)
# make test-all  both
# make test-lowest  all tests but the slow ones with the lowest versions that pyproject.toml allows (4 GB, removed by `make clean`)
# make soak      tiny trials under fire for 20 minutes: processes are killed, files damaged, other commands run in the home
# make fuzz      damaged and forged files of every kind for FUZZ_SECONDS (an hour): each is refused in a line or can be read
# make bench     tests/benchmarks on a few shipped specs and sweeps, compared with targets (a quarter of an hour on an idle machine)
# make bench-gpu the same for the paper's sizes on a GPU: memory and MFU, eager and compiled; small
#                sizes; the quick ablation with a trial a GPU, and with four
# make results   the results of README and docs/results.md, with the hours that each takes here; make results RESULT=mnist makes one
# make check     linter and type checker
# make docs      the documentation as a website in site/, which works offline
PYTHON ?= python3
BIN := .venv/bin
SPEC ?= experiments/collapse_ablation.yaml
FUZZ_SECONDS ?= 3600
BENCHMARKS := PYTHONPATH=tests $(BIN)/python -m benchmarks
BENCH ?= experiments/collapse_ablation.yaml experiments/component_ablation.yaml experiments/size_scaling.yaml

# One thread a process unless a spec says otherwise: trials run side by side on the machine's cores.
export OMP_NUM_THREADS ?= 1

.PHONY: sweep results test test-slow test-all test-lowest soak fuzz bench bench-gpu check docs clean

sweep: .venv/.installed
	$(BIN)/dsd-lab sweep $(SPEC)
	$(BIN)/dsd-lab report $(SPEC)

results: .venv/.installed-test
	$(BIN)/python analysis/results.py $(RESULT) $(foreach value,$(SET),--set $(value))

test: .venv/.installed-test check
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not slow and not integration"

test-slow: .venv/.installed-test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "slow or integration"

test-all: test test-slow

test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --disable-pip-version-check -q $$($(PYTHON) tests/lowest.py)
	.venv-lowest/bin/pip install --disable-pip-version-check -q -e '.[test]'
	.venv-lowest/bin/python -m pytest -p no:cacheprovider -n auto --maxprocesses 4 --dist worksteal -m "not slow"

soak: .venv/.installed-test
	$(BIN)/python tests/soak.py --trials 100 --minutes 20 --seed 0

fuzz: .venv/.installed-test
	FUZZ_SECONDS=$(FUZZ_SECONDS) nice -n 10 $(BIN)/python -m pytest -p no:cacheprovider --timeout=0 tests/test_fuzz_files.py tests/test_fuzz_foreign.py

bench: .venv/.installed
	$(BENCHMARKS) trials $(BENCH)
	$(BENCHMARKS) sweeps $(SPEC)
	$(BENCHMARKS) sweeps $(SPEC) --variant dsd --set training.steps=1 --set network.width=16 --set evaluate=[] --set seeds=[$$(seq -s, 0 499)]

bench-gpu: .venv/.installed
	$(BENCHMARKS) trials experiments/imagenet256.yaml --profile full --random-images
	$(BENCHMARKS) trials experiments/imagenet256.yaml --profile full --random-images --set base.training.compile=true
	$(BENCHMARKS) trials nano8 nano28 --set base.resources.gpus=1
	$(BENCHMARKS) sweeps $(SPEC) --set base.resources.gpus=1
	$(BENCHMARKS) sweeps $(SPEC) --set base.resources.gpus=0.25

check: .venv/.installed-test
	$(BIN)/ruff check dsd_lab tests
	$(BIN)/ruff format --check dsd_lab tests
	$(BIN)/mypy

docs: .venv/.installed-docs
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "dsd-lab needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	@touch $@

.venv/.installed-docs: .venv/.installed
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv .venv-lowest site
