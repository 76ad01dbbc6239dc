"""modprobe(8): has the kernel load a module."""

from __future__ import annotations

from lamina.tools.run import run

_SECONDS = 30.0


def modprobe(module: str) -> None:
    """Load a module and what it needs; one that is there already is no error.

    Raises:
        ToolError: there is no such module for this kernel, or modprobe itself is missing, or the
            caller lacks CAP_SYS_MODULE.
    """
    run(["modprobe", module], timeout=_SECONDS)
