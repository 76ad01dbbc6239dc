"""Which gate to use for files in a directory, found out by trying."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import FailedPrecondition
from lamina.linux import fanotify, probes

if TYPE_CHECKING:
    from lamina.lazy.served import GateName

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""Inode number that the kernel gives it: PROC_PID_INIT_INO of <linux/proc_ns.h>."""


def choose_gate(directory: Path) -> GateName:
    """Return the best gate for cache files in this directory.

    `fanotify`, unless the worker's processes may all be ended at one time, which that of a process
    namespace does with its last: there only `fuse` never shows bytes that are not there.

    Raises:
        FailedPrecondition: neither works; the hint says why.
    """
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    reasons = []
    if namespace != _INITIAL_PID_NAMESPACE:
        reasons.append("fanotify: not in a process namespace of its own")
    elif (reason := why_not("fanotify", directory)) is None:
        return "fanotify"
    else:
        reasons.append(f"fanotify: {reason}")
    if (reason := why_not("fuse", directory)) is None:
        return "fuse"
    reasons.append(f"fuse: {reason}")
    raise FailedPrecondition("find a gate for lazy files", directory, hint="; ".join(reasons))


def why_not(gate: GateName, directory: Path) -> str | None:
    """Try a gate on a file in the directory; None when it works, else the reason."""
    return (fanotify.probe if gate == "fanotify" else probes.fuse)(directory)
