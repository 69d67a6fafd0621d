# The commands of the README: `make demo`, `make demo-nni` and `make test`.
PYTHON ?= python3
PORT ?= 8080
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo demo-nni test lint setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c 'import torch, torchvision, timm; torchvision.ops.nms; print("torch", torch.__version__, "torchvision", torchvision.__version__, "timm", timm.__version__)'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/tips-nni run examples/digits/run.yaml

# An NNI experiment over the subnets of the demo: the page is at http://localhost:$(PORT) while it runs.
demo-nni: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo-nni: $(STAMP)
	test -f runs/digits/anytime.safetensors -a -f runs/digits/architecture.json || tips-nni run examples/digits/run.yaml --resume
	tips-nni register
	tips-nni check examples/nni/config.yaml
	nnictl create --config examples/nni/config.yaml --port $(PORT)
	tips-nni nni-front latest --wait --run runs/digits --model runs/digits/nni.safetensors; \
	  status=$$?; nnictl stop --port $(PORT); exit $$status

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) runs
