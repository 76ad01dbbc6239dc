"""What drivers need that stack EROFS images by the kernel's overlay, and how they find out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lamina.errors import SnapshotterSkipped
from lamina.snapshotters.plugin import Need
from lamina.snapshotters.trials import tried

if TYPE_CHECKING:
    from lamina.core.driver import Driver

    DriverT = TypeVar("DriverT", bound=Driver)


def _image(directory: Path) -> str | None:
    from lamina.linux import probes

    return tried(probes.erofs, directory)


def _file(directory: Path) -> str | None:
    from lamina.linux import probes

    return tried(probes.erofs_files, directory)


def _overlay(directory: Path) -> str | None:
    from lamina.linux import probes

    return tried(probes.overlay, directory)


EROFS_MOUNTS = Need(
    what="EROFS mounts",
    tried="mount an image of one file",
    probe=_image,
    fix="modprobe erofs, and run as root",
)
EROFS_FILES = Need(
    what="EROFS mounts of files",
    tried="mount an image of one file, without a loop device",
    probe=_file,
    fix="boot Linux 6.12 or newer that has EROFS; and --root DIR on ext4, xfs or btrfs",
)
OVERLAY_MOUNTS = Need(
    what="overlay mounts",
    tried="mount an overlay with an upper directory",
    probe=_overlay,
    fix="modprobe overlay, and run as root; or --root DIR on ext4, xfs or btrfs",
)


def require(id: str, need: Need, reason: str | None, *, fix: str = "") -> None:
    """Go on where nothing is wrong.

    Args:
        id: the snapshotter's.
        need: what it needs.
        reason: what the trial has said.
        fix: what helps, if not the need's own advice.

    Raises:
        SnapshotterSkipped: there is a reason.
    """
    if reason is not None:
        raise SnapshotterSkipped(id, reason=f"{need.what}: {reason}", fix=fix or need.fix)


def loaded(id: str, root: Path, make: Callable[[], DriverT]) -> DriverT:
    """Make the directory and the driver, where this user and the filesystem are fit for it.

    Raises:
        SnapshotterSkipped: in a user namespace.
        FailedPrecondition: the filesystem does not tell entries' types.
    """
    from lamina.snapshotters.overlay_support import require_d_type

    _require_no_user_namespace(id)
    root.mkdir(0o700, parents=True, exist_ok=True)
    driver = make()
    try:
        require_d_type(root)
    except BaseException:
        driver.close()
        raise
    return driver


def check(id: str, directory: Path) -> None:
    """Find out in an empty directory what `loaded` would, without a driver.

    Raises:
        SnapshotterSkipped, FailedPrecondition: as `loaded`.
    """
    from lamina.snapshotters.overlay_support import require_d_type

    _require_no_user_namespace(id)
    (directory / "snapshots").mkdir(mode=0o700)  # an entry to look at
    require_d_type(directory)


def _require_no_user_namespace(id: str) -> None:
    from lamina.linux.userns import in_user_namespace

    if in_user_namespace():
        reason = "a user namespace may not mount EROFS"
        raise SnapshotterSkipped(id, reason=reason, fix="run as the machine's root")
