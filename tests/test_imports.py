"""What is imported when; each in a new Python."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import ocs_tf

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(ocs_tf.__file__).parents[1]
HEAVY = "{'tensorflow', 'keras', 'ai_edge_quantizer'} & {*__import__('sys').modules}"


def python(code: str) -> str:
    """What `code` prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "import ocs_tf",
        "import ocs_tf.numerics",
        "import ocs_tf; ocs_tf.numerics.ActivationGrid; ocs_tf.Config(weight_bits=4)",
        "import ocs_tf; dir(ocs_tf); hasattr(ocs_tf, 'nothing')",
        "from ocs_tf import cli; cli.main(['--version'])",
        "from ocs_tf import cli; cli.main(['--help'])",
        "from ocs_tf import cli; cli.main(['convert', '--help'])",
        "from ocs_tf import cli; cli.main(['export', 'missing.keras', '--output', 'x.tflite'])",
        "from ocs_tf import cli; cli.main(['compare', '--nothing'])",
    ],
)
def test_tensorflow_is_imported_when_something_needs_it(code: str) -> None:
    assert python(f"{code}; print({HEAVY})").splitlines()[-1] == "set()"


@pytest.mark.parametrize("order", ["keras, ocs_tf", "ocs_tf, keras"])
def test_saved_models_load_once_both_are_imported(order: str) -> None:
    code = (
        f"import {order}; import sys; assert 'ocs_tf.layers' in sys.modules;"
        "print(keras.saving.get_registered_object('ocs_tf>QuantizedDense').__name__)"
    )
    assert python(code) == "QuantizedDense"


def test_every_public_name_is_there() -> None:
    code = "import ocs_tf; print([n for n in ocs_tf.__all__ if getattr(ocs_tf, n) is None])"
    assert python(code) == "[]"
    assert set(ocs_tf.__all__) <= set(dir(ocs_tf))
    with pytest.raises(AttributeError, match="module 'ocs_tf' has no attribute 'nothing'"):
        _ = ocs_tf.nothing


def test_no_public_function_has_the_name_of_a_module() -> None:
    modules = {path.stem for path in (ROOT / "ocs_tf").iterdir()}
    functions = {name for name in ocs_tf.__all__ if callable(getattr(ocs_tf, name))}
    assert not modules & functions


@pytest.mark.parametrize(
    ("module", "name"), [("compare", "TFLiteModel"), ("convert", "plan"), ("report", "Report")]
)
def test_former_modules(module: str, name: str) -> None:
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        f"try:\n    from ocs_tf.{module} import {name}\n"
        "except DeprecationWarning as warning:\n    print(warning)\n"
        "warnings.simplefilter('ignore')\n"
        f"from ocs_tf.{module} import {name}; import ocs_tf\n"
        f"assert {name} is ocs_tf.{name} and callable(ocs_tf.{module})"
    )
    warning = f"the module ocs_tf.{module} is going away; import {name} from ocs_tf."
    assert python(code) == warning
