"""`lamina run --rm IMAGE true` beside `ctr run --rm` of Debian's containerd, both images warm."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.figures import Figure, paired
from bench.process import timed
from bench.startup import LAMINA
from tests.fixtures_containerd import running_containerd
from tests.fixtures_registry import running_registry

DEMO_IMAGE = Path(__file__).parents[1] / "script" / "demo_image.py"


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Time whole commands, from exec to exit; the container runs busybox's `true`."""
    with (
        tempfile.TemporaryDirectory(prefix="lamina-bench-") as name,
        running_registry(Path(name, "registry")) as registry,
        running_containerd(Path(name, "containerd")) as containerd,
    ):
        reference = f"{registry.host}/bench/busybox:latest"
        subprocess.run([sys.executable, DEMO_IMAGE, reference], check=True)
        lamina = [LAMINA, "--root", str(Path(name, "root"))]
        subprocess.run([*lamina, "images", "pull", "--plain-http", reference], check=True)
        containerd.ctr("images", "pull", "--plain-http", reference)
        numbers = itertools.count()

        def ours() -> float:
            return timed([*lamina, "run", "--rm", reference, _id(numbers), "/bin/true"])

        def theirs() -> float:
            return timed(containerd.argv("run", "--rm", reference, _id(numbers), "/bin/true"))

        ours(), theirs()
        samples = paired(ours, theirs, runs=11)
        version = containerd.ctr("version").split("Server:")[1].split()[1]
    return [Figure("run-rm-true", *samples, 1.0, "ctr run --rm")], {"containerd": version}


def _id(numbers: itertools.count[int]) -> str:
    return f"lamina-bench-{os.getpid()}-{next(numbers)}"
