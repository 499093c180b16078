"""All benchmarks, one after the other: `python -m benchmarks [--quick] [--output_dir FOLDER]`.

Without flags, docs/results.md is written at the end. `benchmarks.imagenet` is left out: it needs
images that do not come with the others.
"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "splitting",
    "accuracy",
    "ingredients",
    "equalization",
    "defaults",
    "activation_splitting",
    "peers",
    "runtimes",
    "microkernels",
    "latency",
    "applications",
    "memory",
    "threads",
    "verification",
    "accelerators",
    "language_model",
)


def main() -> int:
    """Run each benchmark in a process of its own, with the same flags; 0 if all went well."""
    codes = []
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        codes.append(
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]).returncode
        )
    if not sys.argv[1:]:  # the rows are where the page takes them from
        codes.append(subprocess.run([sys.executable, "-m", "benchmarks.report"]).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
