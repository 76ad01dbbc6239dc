"""systemctl: units that start with the machine."""

from __future__ import annotations

from pathlib import Path

from lamina.tools.run import run

_SECONDS = 60.0
_MACHINE = Path("/")


def enable(unit: str, *, root: Path = _MACHINE) -> None:
    """Let systemd start a unit at boot; `root` is that of another system, which is not running.

    Raises:
        ToolError: systemd is not there, or does not know the unit.
    """
    run(["systemctl", *_at(root), "--quiet", "enable", unit], timeout=_SECONDS)


def disable(unit: str, *, root: Path = _MACHINE) -> None:
    """Let systemd not start a unit at boot any more.

    Raises:
        ToolError: systemd is not there, or does not know the unit.
    """
    run(["systemctl", *_at(root), "--quiet", "disable", unit], timeout=_SECONDS)


def _at(root: Path) -> list[str]:
    return [] if root == _MACHINE else [f"--root={root}"]
