# Every target sets itself up; only python3 (3.11 or newer) and make are needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = $(BIN)/python -m
BENCH ?= bench-output
WORKERS ?= 2
QUICK = "not slow and not optimum and not openvino_peers and not ray"

GPU_REPORT ?= gpu-report

.PHONY: demo test family-table test-slow test-optimum test-openvino-peers test-ipex test-gpu test-providers test-ray lint bench \
	bench-peers clean

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -U pip
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -e ".[export,onnx,openvino,quant,tensorrt-rtx,torch,faces,gguf,lora,bench,loadgen,serve,clients,dev]"
	touch $@

.typecheck/vitrify:
	mkdir -p .typecheck && ln -sfn .. .typecheck/vitrify

demo: $(VENV)/.ready
	$(RUN) vitrify demo -o demo-output

# the server's tests have deadlines, and run alone; PyTorch's threads must not spin beside another process; what the
# first part traces, the second finds in the cache
test: $(VENV)/.ready
	failed=0; cache=$$(mktemp -d); trap 'rm -rf "$$cache"' EXIT; trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM; \
	export VITRIFY_TEST_CACHE="$${VITRIFY_TEST_CACHE:-$$cache}"; \
	OMP_WAIT_POLICY=PASSIVE $(RUN) pytest -m $(QUICK) -n $(WORKERS) --dist loadfile --ignore tests/serve || failed=1; \
	$(RUN) pytest -m $(QUICK) tests/serve || failed=1; \
	exit $$failed

# the README's table of families and tasks, from what the tests compare, the slow ones too
family-table: $(VENV)/.ready
	OMP_WAIT_POLICY=PASSIVE $(RUN) pytest -m "not optimum and not openvino_peers" -n $(WORKERS) --dist loadfile \
		--junitxml family-results.xml tests/pipelines/families tests/pipelines/test_control.py tests/pipelines/lora; \
	$(BIN)/python tests/feature_table.py family-results.xml

test-slow: $(VENV)/.ready
	$(RUN) pytest -m slow

# optimum-onnx wants transformers 4 and an older diffusers, the oldest that we support, so it lives apart
.venv-optimum/.ready: pyproject.toml
	test -x .venv-optimum/bin/python || $(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/pip install -q -U pip
	.venv-optimum/bin/pip install -q torch==2.13.0
	.venv-optimum/bin/pip install -q -e ".[export,onnx,optimum]" pytest
	touch $@

test-optimum: .venv-optimum/.ready
	.venv-optimum/bin/python -m pytest -m optimum tests/optimum -W ignore::pytest.PytestUnraisableExceptionWarning

# optimum-intel wants an older transformers, and torchvision, whose wheel does not import beside torch's for the CPU;
# nothing here uses that
.venv-openvino-peers/.ready: pyproject.toml
	test -x .venv-openvino-peers/bin/python || $(PYTHON) -m venv .venv-openvino-peers
	.venv-openvino-peers/bin/pip install -q -U pip
	.venv-openvino-peers/bin/pip install -q torch==2.13.0
	.venv-openvino-peers/bin/pip install -q -e ".[export,onnx,openvino,genai,openvino-peers]" pytest
	.venv-openvino-peers/bin/pip uninstall -q -y torchvision
	touch $@

test-openvino-peers: .venv-openvino-peers/.ready
	.venv-openvino-peers/bin/python -m pytest -m openvino_peers tests/optimum

# IPEX is at its end and runs with PyTorch 2.8 alone, of which PyPI has a build for CUDA, 7 GB once installed; with
# PIP_EXTRA_INDEX_URL set to PyTorch's wheels for CPUs it is less than 2
.venv-ipex/.ready: pyproject.toml
	test -x .venv-ipex/bin/python || $(PYTHON) -m venv .venv-ipex
	.venv-ipex/bin/pip install -q -U pip
	.venv-ipex/bin/pip install -q -e ".[export,onnx,ipex]" pytest
	touch $@

test-ipex: .venv-ipex/.ready
	.venv-ipex/bin/python -m pytest -k ipex tests/contract/test_contract.py tests/contract/test_ipex.py

# On a machine with an NVIDIA GPU: all that needs one, and a report of it. GPU_PYTHON=python3 uses an environment that
# has the libraries already. tensorrt is tried and may be missing: its package fetches libraries from elsewhere.
ifeq ($(GPU_PYTHON),)
GPU_PYTHON = .venv-gpu/bin/python
GPU_READY = .venv-gpu/.ready
endif

.venv-gpu/.ready: pyproject.toml
	test -x .venv-gpu/bin/python || $(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install -q -U pip
	.venv-gpu/bin/pip install -q -e ".[export,torch,onnx-gpu,tensorrt-rtx,lora,bench]" "onnxruntime-gpu[cuda,cudnn]" \
		nncf nvidia-ml-py pytest
	-.venv-gpu/bin/pip install -q "tensorrt>=10.15"
	touch $@

test-gpu: $(GPU_READY) .typecheck/vitrify
	failed=0; \
	PYTHONPATH=.typecheck VITRIFY_GPU_REPORT=$(GPU_REPORT) $(GPU_PYTHON) -m pytest -m gpu tests/gpu tests/contract \
		tests/bench/test_energy.py || failed=1; \
	NVIDIA_TF32_OVERRIDE=0 PYTHONPATH=.typecheck VITRIFY_GPU_REPORT=$(GPU_REPORT)/float32 $(GPU_PYTHON) -m pytest -m gpu \
		-k "provider and tensorrt" tests/gpu || failed=1; \
	exit $$failed

# ONNX Runtime's providers that run or load without a GPU; onnxruntime-openvino excludes onnxruntime, so it lives apart
.venv-providers/.ready: pyproject.toml
	test -x .venv-providers/bin/python || $(PYTHON) -m venv .venv-providers
	.venv-providers/bin/pip install -q -U pip
	.venv-providers/bin/pip install -q torch==2.13.0
	.venv-providers/bin/pip install -q -e ".[export,onnx-openvino]" onnxruntime-ep-webgpu \
		onnxruntime-ep-nv-tensorrt-rtx-cu12 pytest
	touch $@

test-providers: .venv-providers/.ready
	.venv-providers/bin/python -m pytest -k provider tests/contract/test_contract.py tests/contract/test_ort_providers.py
	.venv-providers/bin/python -m pytest tests/contract/test_ort.py tests/contract/test_ort_binding.py

# Ray is large, and nothing else needs it; the tests are those of the server, with its other engine
.venv-ray/.ready: pyproject.toml
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	.venv-ray/bin/pip install -q -U pip
	.venv-ray/bin/pip install -q torch==2.13.0
	.venv-ray/bin/pip install -q -e ".[export,onnx,serve,ray]" pytest httpx psutil
	touch $@

test-ray: .venv-ray/.ready
	OMP_NUM_THREADS=1 VITRIFY_TEST_ENGINE=ray .venv-ray/bin/python -m pytest -m "not slow" tests/serve/test_ray.py \
		tests/serve/test_huggingface.py tests/serve/test_openai.py tests/serve/test_a1111.py tests/serve/test_inference_v2.py \
		tests/serve/test_drawing.py

bench: $(VENV)/.ready
	$(RUN) vitrify.bench.first --work $(BENCH)

# each tool in an environment of its own, below $(BENCH)/peers; one that cannot be built is told by its rows
bench-peers: $(VENV)/.ready
	$(RUN) vitrify.bench.peers.environments --work $(BENCH)
	$(RUN) vitrify.bench.first --work $(BENCH) --only peers
	$(RUN) vitrify.bench.first --work $(BENCH) --only less

lint: $(VENV)/.ready .typecheck/vitrify
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	MYPYPATH=.typecheck $(RUN) mypy -p vitrify
	PYTHONPATH=.typecheck $(BIN)/lint-imports

clean:
	rm -rf $(VENV) .typecheck build *.egg-info
