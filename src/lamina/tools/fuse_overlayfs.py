"""fuse-overlayfs(1): which one is installed."""

from __future__ import annotations

import re

from lamina.tools.run import run

_SECONDS = 20.0


def version() -> tuple[int, ...]:
    """Return the version of the program, such as (1, 10); () where it does not tell.

    Raises:
        ToolError: it is missing or does not run.
    """
    return parse_version(run(["fuse-overlayfs", "--version"], timeout=_SECONDS).stdout.decode())


def parse_version(text: str) -> tuple[int, ...]:
    """Return the version in the output of `fuse-overlayfs --version`."""
    found = re.search(r"^fuse-overlayfs: version ([0-9]+(?:\.[0-9]+)*)", text, re.MULTILINE)
    return tuple(map(int, found[1].split("."))) if found else ()
