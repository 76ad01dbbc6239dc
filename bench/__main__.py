"""Run the benchmarks named, or all: `python -m bench [NAME...]`. Needs root."""

from __future__ import annotations

import importlib
import os
import sys

from bench.figures import Figure, record

BENCHMARKS = (
    *("startup", "engine", "serve", "run", "memory", "pull", "fork", "lazy"),
    *("devmapper", "gates", "scale"),  # in virtual machines
)


def main(names: list[str]) -> int:
    """Run them one after another; the figures' lines come last, together."""
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        print(f"bench: no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
        return 2
    if os.geteuid() != 0:
        print("bench: needs root, to mount, to drop the page cache and to start containerd")
        return 2
    figures: list[Figure] = []
    for name in names or BENCHMARKS:
        print(f"== {name}", flush=True)
        measured, versions = importlib.import_module(f"bench.{name}").measure()
        for figure in measured:
            print(figure.details(), flush=True)
        print(f"written to {record(name, measured, versions)}", flush=True)
        figures += measured
    for figure in figures:
        print(figure.line())
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
