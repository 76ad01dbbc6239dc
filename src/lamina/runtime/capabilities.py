"""Linux capabilities by name (capabilities(7)), and the set that a container is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamina.errors import InvalidArgument

_BY_NUMBER = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
"""What containerd gives a container by default, in its order."""


def granted(*, privileged: bool, add: Sequence[str], drop: Sequence[str]) -> list[str]:
    """Return the names a container gets: the default ones, or all this process has, adjusted.

    `add` and `drop` name capabilities with or without `CAP_`, in any case; `ALL` means every one
    that this process has. What is dropped wins.

    Raises:
        InvalidArgument: there is no capability of that name.
    """
    names = list(current() if privileged else DEFAULT)
    for name in _expand(add):
        if name not in names:
            names.append(name)
    dropped = _expand(drop)
    return [name for name in names if name not in dropped]


def current() -> list[str]:
    """Return the effective capabilities of this process, in the order of their numbers."""
    status = Path("/proc/self/status").read_text()
    mask = int(status.split("CapEff:", 1)[1].split(None, 1)[0], 16)
    return [name for number, name in enumerate(_BY_NUMBER) if mask >> number & 1]


def _expand(names: Sequence[str]) -> list[str]:
    result: list[str] = []
    for name in names:
        full = name.upper()
        if full == "ALL":
            result += current()
            continue
        full = full if full.startswith("CAP_") else f"CAP_{full}"
        if full not in _BY_NUMBER:
            raise InvalidArgument(
                "use capability",
                name,
                hint="capabilities(7) lists the names, such as CAP_NET_ADMIN",
            )
        result.append(full)
    return result
