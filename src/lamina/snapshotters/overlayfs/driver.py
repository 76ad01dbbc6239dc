"""Storage of the overlayfs snapshotter, in containerd's layout and with its mounts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lamina.core.driver import Ability, Snapshot
from lamina.core.labels import OVERLAY_UPPERDIR, OVERLAY_VOLATILE
from lamina.core.mount import Mount
from lamina.core.snapshot import Usage
from lamina.meta.boot import boot_id
from lamina.snapshotters.overlay_stack import OverlayStackDriver
from lamina.snapshotters.overlayfs.volatile import check_volatile, prepare_volatile


class OverlayDriver(OverlayStackDriver):
    """The overlayfs driver.

    Args:
        root: the snapshotter's directory; made when absent.
        abilities: what kernel and configuration allow.
        mount_options: for every overlay mount, after the directories; never for bind mounts.
        upperdir_label: show the label OVERLAY_UPPERDIR.
        boot: id of the running boot, if not the kernel's.
    """

    def __init__(
        self,
        root: Path,
        *,
        abilities: frozenset[Ability] = frozenset({Ability.REBASE}),
        mount_options: tuple[str, ...] = (),
        upperdir_label: bool = False,
        boot: str = "",
    ) -> None:
        super().__init__(root, abilities=abilities, mount_options=mount_options)
        self._upperdir_label = upperdir_label
        self._boot = boot or boot_id()

    def fork(self, source: Snapshot, target: Snapshot) -> None:
        """Copy the upper directory.

        Raises:
            DataLoss: the source is volatile, and the machine was restarted since.
        """
        check_volatile(self.of(source.id), self._boot)
        super().fork(source, target)

    def writable(self, snapshot: Snapshot, mapping: tuple[str, ...]) -> Mount:
        """Return the overlay, volatile where a label asks for it."""
        mount = super().writable(snapshot, mapping)
        if snapshot.labels.get(OVERLAY_VOLATILE) != "true":
            return mount
        prepare_volatile(self.of(snapshot.id), self._boot)
        return mount._replace(options=(*mount.options, "volatile"))

    def seal(self, snapshot: Snapshot) -> Usage:
        """Measure; the upper directory becomes a lower one as it is."""
        check_volatile(self.of(snapshot.id), self._boot)
        return super().seal(snapshot)

    def info_labels(self, id: int) -> Mapping[str, str]:
        """Return the upper directory, if the configuration wants it shown."""
        if not self._upperdir_label:
            return super().info_labels(id)
        return {OVERLAY_UPPERDIR: str(self.fs(id))}
