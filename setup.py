"""Packaging of ocs_tf; `pip install .` reads this."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
# Read, not imported: importing needs TensorFlow.
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "ocs_tf" / "__init__.py").read_text("utf-8"), re.MULTILINE
).group(1)
README = HERE / "README.md"

DEMO = ["scikit-learn"]
TEST = [
    *DEMO,
    "hypothesis",
    "ipykernel",
    "matplotlib",
    "nbconvert",
    "nbformat",
    "pytest",
    "pytest-xdist",
]
DEV = [*TEST, "mypy", "ruff"]

setup(
    name="ocs_tf",
    version=VERSION,
    description="Training-free quantization of Keras models by outlier channel splitting",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["ocs_tf", "ocs_tf.*"]),
    py_modules=["ocs_tf_command"],
    package_data={"ocs_tf": ["py.typed"]},
    install_requires=[
        "absl-py",
        "ai-edge-litert>=2.0",
        "ai-edge-quantizer>=0.10",
        "jinja2",
        "keras>=3.5",
        "numpy",
        "scipy",
        "tensorflow>=2.16",
        "tqdm",
    ],
    extras_require={"demo": DEMO, "test": TEST, "dev": DEV},
    entry_points={"console_scripts": ["ocs_tf = ocs_tf_command:main"]},
    # The default, "build", is Bazel's file BUILD where file names ignore case.
    options={"build": {"build_base": "dist/build"}},
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
