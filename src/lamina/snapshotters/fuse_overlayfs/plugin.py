"""The fuse-overlayfs snapshotter's configuration: nothing but its place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import SnapshotterSkipped
from lamina.snapshotters.plugin import Need, SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver

ID = "fuse-overlayfs"
_INSTALL = "apt-get install fuse-overlayfs fuse3"
_PROGRAMS = ("fuse-overlayfs", "mount.fuse3")


class FuseOverlayConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.fuse-overlayfs"]`."""

    __slots__ = ()


def _load(config: FuseOverlayConfig, root: Path) -> Driver:
    from lamina.snapshotters.fuse_overlayfs.driver import FuseOverlayDriver

    _require_programs()
    return FuseOverlayDriver(root)


def _require_programs() -> None:
    from lamina.tools.lookup import installed

    for program in _PROGRAMS:
        if not installed(program):
            raise SnapshotterSkipped(ID, reason=f"{program} is not installed", fix=_INSTALL)


def _program(directory: Path) -> str | None:
    from lamina.snapshotters.fuse_overlayfs.support import program_fault

    return program_fault()


def _read_only(directory: Path) -> str | None:
    from lamina.snapshotters.fuse_overlayfs.support import mount_fault

    return mount_fault(directory, writable=False)


def _writable(directory: Path) -> str | None:
    from lamina.snapshotters.fuse_overlayfs.support import mount_fault

    return mount_fault(directory, writable=True)


def _probe(config: FuseOverlayConfig, directory: Path) -> None:
    """Mount once: what is writable has read-only layers below, too.

    Whoever wants to know all that is needed, `doctor`, asks for the version besides.
    """
    _require_programs()
    reason = _writable(directory)
    if reason is not None:
        raise SnapshotterSkipped(ID, reason=f"{_WRITABLE.what}: {reason}", fix=_WRITABLE.fix)


def _check(config: FuseOverlayConfig, directory: Path) -> None:
    """Find nothing out beyond the trial, which has made directories and mounted them."""


_FUSE = "modprobe fuse, and run as root; in a container, pass it /dev/fuse"
_PROGRAM = Need(
    what="the program fuse-overlayfs, 1.0 or newer",
    tried="ask it for its version",
    probe=_program,
    fix=_INSTALL,
)
_READ_ONLY = Need(
    what="read-only mounts",
    tried="mount three directories with it, and look",
    probe=_read_only,
    fix=_FUSE,
)
_WRITABLE = Need(
    what="writable mounts",
    tried="mount three directories below a fourth with it, and write",
    probe=_writable,
    fix=_FUSE,
)
NEEDS = (_PROGRAM, _READ_ONLY, _WRITABLE)

PLUGIN = SnapshotterPlugin(
    id=ID,
    config=FuseOverlayConfig,
    load=_load,
    check=_check,
    probe=_probe,
    needs=NEEDS,
    rank=30,
    merit="snapshots share their layers' files where the kernel's overlay cannot be mounted;"
    " a process for each mount, and slower than overlayfs",
)
