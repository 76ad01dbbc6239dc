"""Unpacking an image of this machine's store to a snapshotter of a daemon.

The daemon collects snapshots that nothing names, and knows nothing of this store's images and
leases. So every snapshot made here is labelled as a root, until the one above it holds it too; the
top one stays a root for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lamina.api.client import RemoteSnapshotter
from lamina.core.labels import GC_ROOT
from lamina.core.mount import Mount
from lamina.core.snapshot import Info
from lamina.errors import LaminaError
from lamina.images.extraction import Destination
from lamina.images.pull import unpack

if TYPE_CHECKING:
    from lamina.api.channel import Channel
    from lamina.core.digest import Digest
    from lamina.images.catalogue import Image
    from lamina.images.store import ImageStore


def unpack_remotely(
    image: Image, *, store: ImageStore, channel: Channel, snapshotter: str, namespace: str = ""
) -> Digest | None:
    """Make sure that an image's layers are with a daemon on this machine; return its chain id.

    Args:
        image: a record of the store.
        store: where its content is.
        channel: the way to the daemon.
        snapshotter: the daemon's name for the snapshotter.
        namespace: in which a containerd is to have the snapshots.

    Raises:
        NotFound: the image has nothing for this platform, or content is missing.
        LaminaError: what the daemon says, or a layer is damaged.
    """
    remote = _RootingSnapshotter(channel, snapshotter, namespace=namespace)
    # A name of its own, so that nothing here is taken for a snapshot of this store.
    destination = Destination(f"{snapshotter}@daemon", remote)
    try:
        chain_id = unpack(image, store=store, destination=destination).chain_id
    except BaseException:
        remote.let_go()
        raise
    if chain_id is not None:
        remote.root(chain_id)
    return chain_id


class _RootingSnapshotter(RemoteSnapshotter):
    """Labels what it makes as roots, as long as nothing above them is there."""

    def __init__(self, channel: Channel, name: str, *, namespace: str) -> None:
        super().__init__(channel, name, namespace=namespace)
        self._made: set[str] = set()  # and root still

    def root(self, key: str) -> None:
        """Label a snapshot as a root."""
        self.update(Info(key, labels=_as_root({})), f"labels.{GC_ROOT}")

    def let_go(self) -> None:
        """Leave what was made here to the daemon's collection, as far as the daemon can be told."""
        for key in self._made:
            with suppress(LaminaError):
                self._unroot(key)
        self._made.clear()

    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Make an Active snapshot that is a root."""
        return super().prepare(key, parent, labels=_as_root(labels))

    def commit(
        self, name: str, key: str, *, labels: Mapping[str, str] | None = None, parent: str = ""
    ) -> None:
        """Commit it as a root; what was made for it to stand on need be one no more."""
        below = self.stat(key).parent
        super().commit(name, key, labels=_as_root(labels), parent=parent)
        self._made.add(name)
        if below in self._made:
            self._unroot(below)
            self._made.remove(below)

    def _unroot(self, key: str) -> None:
        self.update(Info(key), f"labels.{GC_ROOT}")


def _as_root(labels: Mapping[str, str] | None) -> dict[str, str]:
    return {**(labels or {}), GC_ROOT: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
