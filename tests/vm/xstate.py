"""What User-mode Linux needs on processors with AMX: `xstate.c`, compiled once."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("xstate.c")
CACHE = Path("~/.cache/lamina")


@functools.cache
def preloading() -> dict[str, str]:
    """Return the variables that load it into a program, empty for other processors than x86-64.

    Raises:
        FileNotFoundError: there is no compiler.
        CalledProcessError: it does not compile.
    """
    if platform.machine() != "x86_64":
        return {}
    text = SOURCE.read_bytes()
    library = CACHE.expanduser() / f"xstate-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as name:
            made = Path(name, library.name)
            options = ("-Wall", "-Werror", "-O2", "-fPIC", "-fno-builtin", "-shared", "-nostdlib")
            subprocess.run(("gcc", *options, "-o", made, SOURCE), check=True)
            os.replace(made, library)
    return {"LD_PRELOAD": str(library)}
