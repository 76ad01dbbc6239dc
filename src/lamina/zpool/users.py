"""Who has datasets of a pool mounted, in whatever mount namespace.

Exporting or destroying a pool by the command unmounts what the caller sees, and fails then over
what others see: too late for those whose mounts are gone.
"""

from __future__ import annotations

from pathlib import Path

from lamina.linux.mountinfo import read_mountinfo


def users(pool: str) -> list[str]:
    """Return where datasets below a pool's own are mounted, each place once, sorted."""
    places: set[str] = set()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            places.update(_mounted(process.name, f"{pool}/"))
    return sorted(places)


def _mounted(process: str, prefix: str) -> list[str]:
    try:
        mounts = read_mountinfo(process)
    except OSError:
        return []  # it has ended
    return [m.point for m in mounts if m.type == "zfs" and m.source.startswith(prefix)]
