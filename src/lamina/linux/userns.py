"""User namespaces: are we in one, and descriptors of new ones that carry id maps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HOLDER = Path(__file__).with_name("userns_holder.py")
_WHOLE = ["0", "0", "4294967295"]


def in_user_namespace() -> bool:
    """Tell whether this process runs in a user namespace other than the first."""
    return Path("/proc/self/uid_map").read_text().split() != _WHOLE


def new_user_namespace(uid_map: str, gid_map: str) -> int:
    """Return a descriptor of a new user namespace with these maps; nothing lives in it.

    Only a process can make one, and one with several threads cannot make it for itself. So a
    helper is exec'ed; it ends with its standard input, hence never survives this process.

    Args:
        uid_map: lines of /proc/PID/uid_map, `inside outside count`; see user_namespaces(7).
        gid_map: likewise.

    Raises:
        OSError: EPERM (not privileged, or ids that this process's namespace lacks), ENOSPC
            (/proc/sys/user/max_user_namespaces), EINVAL (overlapping ranges).
    """
    import subprocess  # only idmapped mounts pay for it

    argv = [sys.executable, "-I", "-S", str(_HOLDER)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, env={}) as holder:
        if holder.stdin is None or holder.stdout is None:
            raise AssertionError("Popen gave no pipes")
        answer = holder.stdout.readline()
        number = int(answer or -1)
        if number > 0:
            raise OSError(number, os.strerror(number), "unshare(CLONE_NEWUSER)")
        if number < 0:
            raise OSError(0, "the helper that makes user namespaces died", str(_HOLDER))
        proc = Path("/proc", str(holder.pid))
        (proc / "uid_map").write_text(uid_map)
        (proc / "gid_map").write_text(gid_map)
        return os.open(proc / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
