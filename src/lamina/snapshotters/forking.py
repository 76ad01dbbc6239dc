"""Forks of live snapshots for drivers that keep files in directories: what changes is copied.

ROOT/snapshots/ID/fs is what is copied where a driver has overlayfs's layout, and nothing else: the
work directory of a mounted overlay is the kernel's, and a fork gets an empty one of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from lamina.core.driver import Snapshot

_UUIDS = frozenset({"trusted.overlay.uuid", "user.overlay.uuid"})
"""Since Linux 6.6, and random (Documentation/filesystems/overlayfs.rst, "UUID and fsid")."""
_UUID_BYTES = 16


class _HasUpper(Protocol):
    def create(self, snapshot: Snapshot) -> None: ...
    def of(self, id: int) -> Path: ...


class ForksUpper:
    """`Forkable` for drivers with overlayfs's layout; to be derived from beside the driver's base.

    Whiteouts and overlayfs's own attributes are copied as the files and attributes that they are:
    they mean the same on the same parents.
    """

    forks_atomically = False

    def fork(self: _HasUpper, source: Snapshot, target: Snapshot) -> None:
        """Make the directories as for any snapshot, and copy the upper one."""
        from lamina.snapshotters.live_copy import copy_live_tree  # to run a container, none is

        self.create(target)
        upper = self.of(target.id) / "fs"
        copy_live_tree(self.of(source.id) / "fs", upper)
        _renew_uuid(upper)


def _renew_uuid(upper: Path) -> None:
    """Give a copied upper directory a UUID of its own, if it has one: its mount gets its f_fsid."""
    for name in _UUIDS.intersection(os.listxattr(upper)):
        os.setxattr(upper, name, os.urandom(_UUID_BYTES))
