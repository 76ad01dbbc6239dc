"""The overlayfs snapshotter's configuration, with containerd's keys and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import SnapshotterSkipped
from lamina.snapshotters.plugin import Need, SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.overlayfs"]`.

    Attributes:
        upperdir_label: show each snapshot's upper directory as a label.
        sync_remove: free a snapshot's storage before its removal returns.
        slow_chown: let a container's layers be copied and chowned where its user namespace needs
            it and id-mapped mounts are not to be had.
        mount_options: further options of every overlay mount; bind mounts do not get them.
    """

    upperdir_label: bool = False
    sync_remove: bool = False
    slow_chown: bool = False
    mount_options: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Return the options that the snapshotter has to set itself."""
        own = ("lowerdir", "upperdir", "workdir")
        return [
            f"mount_options: {option!r} is what the snapshotter sets itself"
            for option in self.mount_options
            if option.partition("=")[0].rstrip("+") in own
        ]

    def removes_synchronously(self) -> bool:
        """Return `sync_remove`."""
        return self.sync_remove


def _load(config: OverlayConfig, root: Path) -> Driver:
    from lamina.snapshotters import overlay_support as support
    from lamina.snapshotters.overlayfs.driver import OverlayDriver

    root.mkdir(0o700, parents=True, exist_ok=True)
    driver = OverlayDriver(
        root,
        abilities=support.abilities(slow_chown=config.slow_chown),
        mount_options=support.overlay_options(root, config.mount_options),
        upperdir_label=config.upperdir_label,
    )
    try:
        support.require_d_type(root)  # now that there is an entry to look at
    except BaseException:
        driver.close()
        raise
    return driver


def _check(config: OverlayConfig, directory: Path) -> None:
    from lamina.snapshotters.overlay_support import require_d_type

    (directory / "snapshots").mkdir(mode=0o700)  # an entry to look at
    require_d_type(directory)


def _overlay(directory: Path) -> str | None:
    from lamina.linux import probes
    from lamina.linux.userns import in_user_namespace
    from lamina.snapshotters.trials import tried

    probe = probes.overlay_userxattr if in_user_namespace() else probes.overlay
    return tried(probe, directory)


def _entry_types(directory: Path) -> str | None:
    from lamina.linux.dirent import types_are_known

    return None if types_are_known(directory.parent) else "the filesystem does not tell them"


def _idmapped(directory: Path) -> str | None:
    from lamina.linux import probes

    return probes.overlay_on_idmapped(directory)


def _probe(config: OverlayConfig, directory: Path) -> None:
    reason = _overlay(directory)
    if reason is not None:
        raise SnapshotterSkipped(
            "overlayfs",
            reason=f"mounting an overlay in {directory.parent} fails: {reason}",
            fix="run as root, with the root directory on ext4, xfs or btrfs;"
            " or use the snapshotter native",
        )


NEEDS = (
    Need(
        what="overlay mounts",
        tried="mount an overlay with an upper directory",
        probe=_overlay,
        fix="modprobe overlay, and run as root; or --root DIR on ext4, xfs or btrfs",
    ),
    Need(
        what="d_type",
        tried="list a directory with its entries' types",
        probe=_entry_types,
        fix="make the filesystem anew, with `mkfs.xfs -n ftype=1`; or --root DIR elsewhere",
    ),
    Need(
        what="id-mapped layers",
        tried="mount an overlay on an id-mapped lower directory",
        probe=_idmapped,
        fix="boot Linux 5.19 or newer, and run as root",
        without="no containers with id maps (`run --uidmap --gidmap`)",
    ),
)

PLUGIN = SnapshotterPlugin(
    id="overlayfs",
    config=OverlayConfig,
    load=_load,
    check=_check,
    probe=_probe,
    needs=NEEDS,
    rank=100,
    merit="snapshots share their layers' files, on disk and in memory, and take a millisecond",
)
