"""Which gate to use for files in a directory, found out by trying."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import FailedPrecondition
from lamina.linux import probes

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


def choose_device_gate(directory: Path) -> GateName:
    """Return the best gate for cache files in this directory that are images of filesystems.

    `fuse`, whose file takes a loop device, rather than `nbd`, which needs a module that is seldom
    loaded.

    Raises:
        FailedPrecondition: neither works; the hint says why.
    """
    why = why_not("fuse", directory) or probes.loop(directory)
    if why is None:
        return "fuse"
    reasons = [f"fuse: {why}"]
    if (why := why_not("nbd", directory)) is None:
        return "nbd"
    reasons.append(f"nbd: {why}")
    raise FailedPrecondition("find a gate for lazy devices", directory, hint="; ".join(reasons))


def why_not(gate: GateName, directory: Path) -> str | None:
    """Try a gate on a file in the directory; None when it works, else the reason."""
    if gate == "fuse":
        return probes.fuse(directory)
    if gate == "nbd":
        from lamina.linux import nbd_probe  # threads and sockets, which lists do without

        return nbd_probe.probe()
    from lamina.linux import fanotify  # where FUSE works, lists of snapshotters do without

    return fanotify.probe(directory)


def why_none(directory: Path) -> str | None:
    """Return why no gate works in a directory; None where one does.

    FUSE is tried first, for what it costs: fanotify's trial waits for the kernel to tidy up.
    """
    if why_not("fuse", directory) is None:
        return None
    try:
        choose_gate(directory)
    except FailedPrecondition as error:
        return error.hint
    return None
