"""`lamina plugins ls` beside the bare import of the library that parses its command line."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.figures import Figure, paired
from bench.process import timed

LAMINA = str(Path(sys.executable).with_name("lamina"))


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Time whole processes, from exec to exit."""
    with tempfile.TemporaryDirectory(prefix="lamina-bench-") as root:
        listing = [LAMINA, "--root", root, "plugins", "ls"]
        bare = [sys.executable, "-c", "import click"]
        timed(listing), timed(bare)
        ours, theirs = paired(lambda: timed(listing), lambda: timed(bare), runs=11)
    return [Figure("plugins-ls", ours, theirs, 2.0, "python -c 'import click'")], {}
