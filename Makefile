PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo figures docs gpu test soak bench lint types clean

demo: .venv/studies  ## train and measure the quickstart; results/quickstart.{nc,pdf,png}
	$(PY) studies/quickstart.py

figures: .venv/studies  ## redraw every figure from its stored dataset, beside it
	$(PY) -m figures

docs: .venv/dev  ## READMEs and the reference of all public names as HTML; build/docs/index.html
	$(PY) -m tests.docs.build build/docs

# Names on the Hugging Face hub, or directories. How long it takes has not been measured: no GPU was at hand.
MNIST = mnist
CIFAR10 = cifar10
gpu: .venv/dev  ## Tables 3 and 4 in full, on a GPU; the same command goes on where it stopped
	$(PY) studies/table3.py --data $(MNIST) --compile
	$(PY) studies/table3.py --data $(CIFAR10) --compile --autocast
	$(PY) studies/table4.py --data $(CIFAR10) --examples 0 --epochs 200 --readout-examples 0 --compile --autocast

# The tests' tensors are small: two processes use two cores, two threads do not.
test: export OMP_NUM_THREADS = 1
test: .venv/dev  ## the whole test suite
	$(PY) -m pytest --numprocesses 2 --dist worksteal

soak: export OMP_NUM_THREADS = 1
soak: .venv/dev  ## what may happen to a sweep, in earnest: kills, full disks, races, and its costs
	$(PY) -m pytest -m soak --timeout 1200 --capture no tests/sweeps/test_soak.py

bench: export OMP_NUM_THREADS = 2
bench: .venv/dev  ## how fast it is, beside what else one would do; nothing else should run meanwhile
	$(PY) -m tests.benchmarks.bench

lint: .venv/dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: .venv/dev
	$(PY) -m mypy

.venv/studies: pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv .venv
	$(PIP) --editable '.[studies]'
	touch $@

.venv/dev: .venv/studies
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv results build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
