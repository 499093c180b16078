# make demo, make check, make test, make lint; each makes .venv and installs what it needs, once.
# make onednn, make floor: some tests with oneDNN, and with the lowest versions of the
# dependencies.
# make wheel, make wheel-check: what is uploaded to a package index, and whether it can be installed.
# make native-test, native-sanitize, native-arm, fuzz, bazel: the C++ parts in other ways.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CC_SOURCES := $(wildcard ocs_tf/runtime/cc/*)

.PHONY: demo check test onednn wheel wheel-check floor lint notebook benchmark-quick applications
.PHONY: clean
.PHONY: native-test native-sanitize native-arm fuzz bazel

demo: $(VENV)/demo.stamp
	$(BIN)/ocs_tf demo

# A worker takes a module at a time: what its tests share is made once. In the order of conftest.py.
PYTEST := $(BIN)/python -m pytest
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

# The quick tests; those of one module and of who may import whom: make check MODULE=graph/analysis/chains.
check: $(VENV)/test.stamp
	$(PYTEST) $(if $(MODULE),tests/$(dir $(MODULE))test_$(notdir $(MODULE)).py \
	    tests/test_architecture.py,$(WORKERS) -m "not slow")

test: $(VENV)/test.stamp
	$(PYTEST) $(WORKERS)

# Whether TensorFlow computes by oneDNN differs from CPU to CPU. All tests run without, and those
# that depend on it once more, with it.
check test: export TF_ENABLE_ONEDNN_OPTS := 0
onednn: export TF_ENABLE_ONEDNN_OPTS := 1

ONEDNN_TESTS := tests/graph/test_scaling.py::test_channels_first \
    tests/planning/test_mixed_precision.py::test_what_does_not_matter_gets_fewest_bits \
    $(addprefix tests/graph/,analysis/test_layouts.py substitutions/test_separable.py) \
    tests/graph/test_reader.py tests/layers/test_base.py \
    tests/export/test_running.py

onednn: $(VENV)/test.stamp
	$(PYTEST) $(WORKERS) $(ONEDNN_TESTS)

# The source distribution, and the wheel that is built from it, in dist/release: what a package index
# takes. On Linux, auditwheel names the oldest one that the library runs on. std::vector of GCC 11 and
# later calls a function that older C++ libraries lack (GLIBCXX_3.4.29: manylinux_2_34); what it
# throws is a kind of std::bad_alloc, which theirs can throw. (Linked in, the C++ library of a new
# system needs the glibc of that system.)
RELEASE := dist/release
WHEEL := $(RELEASE)/ocs_tf-*.whl

wheel: $(VENV)/dev.stamp
	rm -rf $(RELEASE)
	CPPFLAGS=-D__throw_bad_array_new_length=__throw_bad_alloc OCS_TF_REQUIRE_NATIVE=1 \
	    $(BIN)/python -m build --outdir $(RELEASE) . > $(VENV)/build.log 2>&1 \
	    || { cat $(VENV)/build.log; exit 1; }
	if [ "$$(uname)" = Linux ]; then \
	    PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --wheel-dir $(RELEASE) $(WHEEL) && \
	    rm $(RELEASE)/*-linux_*.whl; \
	fi
	$(BIN)/twine check --strict $(RELEASE)/*

# The wheel with the newest dependencies, and nothing else, in an environment of its own: two
# minutes. From another folder, so that the checkout does not take its place.
INSTALLED := dist/installed

wheel-check: wheel
	rm -rf $(INSTALLED)
	$(PYTHON) -m venv $(INSTALLED)
	$(INSTALLED)/bin/python -m pip install --quiet $(WHEEL)
	cd $(INSTALLED) && PYTHONPATH= bin/python $(CURDIR)/tests/check_installed.py

# The wheel with the lowest versions that setup.py declares.
FLOOR := dist/floor
LOWEST := sed -n '/install_requires/,/\]/s/.*"\(.*\)>=\(.*\)".*/\1==\2/p' setup.py

# What goes by Keras' private attributes, or by what older versions of Keras do otherwise.
FLOOR_TESTS := $(addprefix $(CURDIR)/tests/,floor layers/test_einsum.py layers/test_inside.py \
    layers/test_base.py::test_other_precisions test_keras_state.py graph/analysis/test_layouts.py \
    graph/analysis/test_masks.py graph/analysis/test_concatenations.py graph/test_cloning.py \
    test_data.py test_data_forms.py export/test_biases.py export/test_samples.py \
    export/test_verification.py $(addprefix export/lowering/test_,build.py checks.py decisions.py) \
    export/test_layers.py::test_integer_activations[Conv2DTranspose] \
    export/test_layers.py::test_integer_kernels_inside_of_a_loop[LSTM-dynamic-int8])
# Last on the path, the checkout has what tests import of each other; the package is the installed one.
FLOOR_PYTEST := bin/python -c "import sys, pytest; sys.path.append('$(CURDIR)'); \
    sys.exit(pytest.main(sys.argv[1:]))" -p no:cacheprovider

floor: wheel $(FLOOR)/bin/python
	$(FLOOR)/bin/python -m pip install --quiet "$$(echo $(WHEEL))[demo]" pytest hypothesis $$($(LOWEST))
	$(FLOOR)/bin/python -m pip install --quiet --force-reinstall --no-deps $(WHEEL)
	cd $(FLOOR) && PYTHONPATH= bin/python $(CURDIR)/tests/check_installed.py
	cd $(FLOOR) && PYTHONPATH= $(FLOOR_PYTEST) $(FLOOR_TESTS) \
	    "$(CURDIR)/tests/test_readme.py::test_python_blocks_run_one_after_the_other[README.md]"

$(FLOOR)/bin/python:
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info < (3, 12) or sys.exit( \
	    "The lowest NumPy needs Python 3.10 or 3.11, but $(PYTHON) is %d.%d. Choose another" \
	    " one: make PYTHON=python3.10 floor" % sys.version_info[:2])'
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --upgrade pip

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebook: $(VENV)/test.stamp
	$(BIN)/python -m nbconvert --to notebook --execute \
	    --output-dir $(VENV)/notebooks notebooks/*.ipynb

# The API reference, from the docstrings. (A dependency asks `uname` when it is imported.)
.PHONY: docs
docs: $(VENV)/docs.stamp
	PDOC_ALLOW_EXEC=1 $(BIN)/python -m pdoc ocs_tf -d google -o dist/docs

benchmark-quick: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks --quick

# All sizes of all networks of keras.applications: hours. What is there already is kept.
applications: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.applications --sizes=all
	$(BIN)/python -m benchmarks.memory

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output ocs_tf/runtime/libocs_delegate.*
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A stamp is older than setup.py once the dependencies may have changed. The library goes first: if
# the compiler refuses the new sources, the old one must not pass for them.
$(VENV)/%.stamp: setup.py pyproject.toml $(CC_SOURCES) | $(VENV)/bin/python
	rm -f ocs_tf/runtime/libocs_delegate.*
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info < (3, 14) or sys.exit( \
	    "ocs_tf needs Python 3.10 .. 3.13, but $(PYTHON) is %d.%d. Choose another one: " \
	    "make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# The C++ parts in other ways than setup.py's, each in a folder of its own.

NATIVE = dist/native/$@
COMPILE = $(CXX) -std=c++17 -Wall -Wextra -fvisibility=hidden -ffp-contract=off -fno-math-errno -pthread \
    -I$(CURDIR)/ocs_tf/runtime/cc $(FLAGS)
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 0

native-test: FLAGS := -O3
native-sanitize fuzz: FLAGS := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
native-arm: FLAGS := -O3 -static
native-arm: CXX := aarch64-linux-gnu-g++
native-arm: RUN := qemu-aarch64

native-test native-sanitize native-arm:
	@$(call need,$(CXX),g++$(if $(RUN),-aarch64-linux-gnu))
	@$(if $(RUN),$(call need,$(RUN),qemu-user))
	rm -rf $(NATIVE) && mkdir -p $(NATIVE)
	cd $(NATIVE) && $(COMPILE) -c $(abspath $(filter %.cc,$(CC_SOURCES)))
	set -e; for test in microkernels_test delegate_test; do \
	    $(COMPILE) tests/runtime/cc/$$test.cc $(NATIVE)/*.o -o $(NATIVE)/$$test; \
	    $(RUN) $(NATIVE)/$$test; \
	done

# A third of the time each: operators in a mock runtime, files in the real ones, documents.
fuzz: SECONDS = $$(($(FUZZ_SECONDS) / 3))
fuzz: native-sanitize $(VENV)/test.stamp
	mkdir -p $(NATIVE)
	$(COMPILE) -DOCS_FUZZ_MAIN tests/runtime/cc/fuzz_ops.cc dist/native/native-sanitize/*.o \
	    -o $(NATIVE)/fuzz_ops
	$(NATIVE)/fuzz_ops $(SECONDS) $(FUZZ_SEED)
	$(BIN)/python tests/runtime/fuzz_files.py --seconds $(SECONDS) --seed $(FUZZ_SEED)
	$(BIN)/python tests/fuzz_documents.py --seconds $(SECONDS) --seed $(FUZZ_SEED)

# Without the tests that `make test` runs on the same Python, and that need no native code.
bazel: $(VENV)/test.stamp
	@$(call need,bazel,bazel-bootstrap bazel-rules-proto)
	PATH="$(abspath $(BIN)):$$PATH" bazel --max_idle_secs=60 test --nosandbox_debug --force_pic \
	    --test_output=errors -- //:all -//:numerics_python_test

# $(call need,PROGRAM,DEBIAN_PACKAGES)
need = command -v $(firstword $(1)) > /dev/null || { \
    echo "$@ needs $(1), which is not installed: apt-get install $(2)" >&2; exit 1; }

.SECONDARY:
