"""Who uses a mount: processes with a directory, a root, a program or an open file in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lamina.linux.mountinfo import mounts_at_or_below

_SHOWN = 5


def describe_holders(path: Path) -> str:
    """Return a hint for an error: which mounts and processes keep `path` busy."""
    inner = [info.point for info in mounts_at_or_below(path) if info.point != str(path)]
    if inner:
        return f"unmount {', '.join(inner[:_SHOWN])} first"
    found = list(islice(_holders(path), _SHOWN))
    if found:
        return f"used by {', '.join(found)}"
    return "no process shows up as its user; a loop device or another mount may be one"


def _holders(path: Path) -> Iterator[str]:
    for proc in Path("/proc").iterdir():
        if proc.name.isdecimal() and _uses(proc, str(path)):
            yield f"{_name(proc)} (pid {proc.name})"


def _uses(proc: Path, path: str) -> bool:
    links = [proc / "cwd", proc / "root", proc / "exe"]
    try:
        links.extend((proc / "fd").iterdir())
    except OSError:
        pass  # ended meanwhile, or somebody else's
    return any(_is_below(link, path) for link in links)


def _is_below(link: Path, path: str) -> bool:
    try:
        end = str(link.readlink())
    except OSError:
        return False
    return end == path or end.startswith(f"{path}/")


def _name(proc: Path) -> str:
    try:
        return (proc / "comm").read_text().strip()
    except OSError:
        return "a process"
