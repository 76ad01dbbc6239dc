"""The systemd unit that activates a pool at boot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamina.provision.unit import BootUnit, unit_text


def pool_unit(device: str, *, root: Path = Path("/")) -> BootUnit:
    """Return the unit of one pool.

    Args:
        device: the name of the pool's device.
        root: of the system whose units these are.
    """
    return BootUnit(f"lamina-devmapper-{device}", root=root)


def pool_unit_text(device: str, command: Sequence[str], *, places: Sequence[Path]) -> str:
    """Return its text; `command` activates the pool, whose files are on the disks of `places`."""
    return unit_text(
        f"Thin pool {device} for the devmapper snapshotter",
        command,
        writer="lamina devmapper setup",
        places=places,
        after=("lvm2-monitor.service", "systemd-modules-load.service"),
    )
