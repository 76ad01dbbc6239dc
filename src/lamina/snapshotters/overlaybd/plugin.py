"""The overlaybd snapshotter's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.snapshotters.erofs_support import OVERLAY_MOUNTS, check, loaded, require
from lamina.snapshotters.lazy_plugin import LazyConfig, lazy_arguments, shown_by_fuse
from lamina.snapshotters.plugin import Need, SnapshotterPlugin
from lamina.snapshotters.trials import tried

if TYPE_CHECKING:
    from lamina.core.driver import Driver
    from lamina.snapshotters.overlaybd.driver import OverlaybdDriver
    from lamina.snapshotters.overlaybd.labels import Mode

ID = "overlaybd"


_MODES = ("overlayfs", "dir", "dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlaybdConfig(LazyConfig):
    """`[plugins."io.containerd.snapshotter.v1.overlaybd"]`; see `LazyConfig`.

    Attributes:
        rw_mode: what Active snapshots change: a directory (`overlayfs`), or blocks of the device,
            which is given mounted (`dir`) or as it is (`dev`).
    """

    rw_mode: str = "overlayfs"

    def gates(self) -> tuple[str, ...]:
        """Return what `gate` can be: a loop device raises no events of fanotify."""
        return ("auto", "fuse", "nbd")

    def problems(self) -> list[str]:
        """Return what the types do not show."""
        found = LazyConfig.problems(self)  # with slots, super() means another class
        if self.rw_mode not in _MODES:
            found.append(f"rw_mode: {self.rw_mode!r} is none of {', '.join(_MODES)}")
        return found

    def mode(self) -> Mode | None:
        """Return `rw_mode`; None for `overlayfs`."""
        match self.rw_mode:
            case "dir" | "dev" as mode:
                return mode
            case _:
                return None


def _load(config: OverlaybdConfig, root: Path) -> Driver:
    return loaded(ID, root, lambda: _driver(config, root))


def _driver(config: OverlaybdConfig, root: Path) -> OverlaybdDriver:
    from lamina.snapshotters.overlaybd.driver import OverlaybdDriver

    return OverlaybdDriver(
        root,
        prefetches=not config.noprefetch,
        mode=config.mode(),
        **lazy_arguments(config, root),
    )


def _check(config: OverlaybdConfig, directory: Path) -> None:
    check(ID, directory)


def _probe(config: OverlaybdConfig, directory: Path) -> None:
    if config.gate == "nbd":
        require(ID, OVERLAY_MOUNTS, OVERLAY_MOUNTS.probe(directory))
        require(ID, _NBD, _NBD.probe(directory))
        return
    for need in NEEDS:
        require(ID, need, need.probe(directory))


def _ext4(directory: Path) -> str | None:
    from lamina.linux import probes

    return tried(probes.ext4_on_loop, directory)


def _nbd(directory: Path) -> str | None:
    from lamina.lazy.gates.choice import why_not

    return why_not("nbd", directory)


_NBD = Need(
    what="network block devices",
    tried="read a device of a few blocks",
    probe=_nbd,
    fix='modprobe nbd, and run as root; or set gate = "auto"',
)
NEEDS = (
    OVERLAY_MOUNTS,
    Need(
        what="ext4 on a loop device",
        tried="have the kernel look for ext4 on a loop device, where there is none",
        probe=_ext4,
        fix="run as root, with /dev/loop-control and a kernel that has ext4",
    ),
    Need(
        what="reads that wait for what is fetched",
        tried="open a file behind FUSE",
        probe=shown_by_fuse,
        fix="modprobe fuse; run as root",
    ),
)
PLUGIN = SnapshotterPlugin(
    id=ID,
    config=OverlaybdConfig,
    load=_load,
    probe=_probe,
    check=_check,
    needs=NEEDS,
    rank=20,
    merit="images of block devices (overlaybd, TurboOCI) run before they are fetched",
)
