"""Extraction snapshots: prepared under a lease and a lock, and committed under a chain id."""

from __future__ import annotations

import base64
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lamina.core.digest import Digest
from lamina.core.labels import DIFF_ID, PARENT_CHAIN_ID, SNAPSHOT_REF, inherited
from lamina.core.mount import Mount
from lamina.core.snapshot import Snapshotter
from lamina.errors import Aborted, AlreadyExists, LaminaError, NotFound
from lamina.formats.estargz.annotations import CHUNKED_DIGESTS
from lamina.images.download import Download, event
from lamina.images.layer_lock import layer_lock
from lamina.images.manifest import Descriptor
from lamina.images.progress import Progress, Stage
from lamina.images.registry.cancel import Cancel
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage
from lamina.meta.leases import EXTRACT_PREFIX, Resource

log = logging.getLogger(__name__)

PREPARE_TRIES = 3


def _takes_none(key: str) -> Path | None:
    """Have every layer extracted."""
    return None


@dataclass(frozen=True, slots=True)
class Destination:
    """Where layers are.

    Attributes:
        name: the snapshotter's.
        snapshotter: itself.
        rebase: its driver can rebase.
        remote: its driver may serve a layer from the layer's registry.
        layer_image: returns the file that takes a layer's image, by the key of its extraction
            snapshot; None for layers that are to be extracted.
    """

    name: str
    snapshotter: Snapshotter
    rebase: bool = False
    remote: bool = False
    layer_image: Callable[[str], Path | None] = _takes_none

    def has(self, chain_id: Digest) -> bool:
        """Tell whether a layer is there."""
        try:
            self.snapshotter.stat(chain_id)
        except NotFound:  # or taken by a power loss, and to be extracted anew
            return False
        return True


@dataclass(slots=True, eq=False)
class Layer:
    """One layer on its way; `held` undoes what was done for it, and lets go of its lock.

    Attributes:
        origin: labels that say where it comes from, for a snapshotter that wants to know.
        implied: as of `Applied`.
    """

    position: int
    descriptor: Descriptor
    diff_id: Digest
    chain_id: Digest
    below: Digest | None
    key: str = ""
    download: Download | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    implied: bool = False
    held: ExitStack = field(default_factory=ExitStack)

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the extraction snapshot, and of the committed one."""
        labels = {**inherited(self.descriptor.annotations), **self.origin}
        labels |= {SNAPSHOT_REF: self.chain_id, DIFF_ID: self.diff_id}
        return labels | ({PARENT_CHAIN_ID: self.below} if self.below else {})

    @property
    def may_be_claimed(self) -> bool:
        """Whether a snapshotter may serve it from its registry: its annotations say how."""
        names = self.descriptor.annotations
        chunked = any(name in names for name in CHUNKED_DIGESTS)
        return bool(self.origin) and (chunked or bool(inherited(names)))


class Extractor:
    """Makes and commits extraction snapshots; whoever inherits it fills them.

    Args:
        store: has the leases and the locks.
        destination: where they are made.
        lease: id of the lease that holds them until an image names them.
        progress: told what happens.
        cancel: stops it from another thread.
    """

    def __init__(
        self,
        store: ImageStore,
        destination: Destination,
        lease: str,
        *,
        progress: Progress,
        cancel: Cancel,
    ) -> None:
        self._store = store
        self._destination = destination
        self._name = destination.name
        self._snapshotter = destination.snapshotter
        self._lease = lease
        self._progress = progress
        self._cancel = cancel

    def _present(self, layers: Sequence[Layer]) -> int:
        """Return how many layers, from the base on, are there.

        One does not imply those below it: a layer may be lost while others stand on it.
        """
        for layer in layers:
            if not self._destination.has(layer.chain_id):
                return layer.position
        return len(layers)

    def _lock(self, layer: Layer) -> None:
        self._cancel.check("unpack layer", layer.descriptor.digest)
        lock = layer_lock(self._store.locks, self._name, layer.chain_id, self._cancel)
        layer.held.enter_context(lock)

    def _prepare(self, layer: Layer, parent: str) -> list[Mount]:
        """Make the extraction snapshot; no mounts if the snapshotter turns out to have the layer.

        Raises:
            Aborted: the snapshotter says AlreadyExists and still does not have the layer.
        """
        for _ in range(PREPARE_TRIES):
            key = extraction_key(layer.chain_id)
            self._hold([key])
            try:
                mounts = self._snapshotter.prepare(key, parent, labels=layer.labels)
            except AlreadyExists:
                if self._destination.has(layer.chain_id):
                    return []
                continue
            layer.key = key
            layer.held.callback(self._discard, layer)
            return mounts
        raise Aborted(
            f"prepare extraction snapshot in {self._name} for",
            layer.chain_id,
            hint="it answers that the snapshot exists, and does not have it; try again",
        )

    def _commit(self, layer: Layer, parent: str) -> None:
        """Commit an extracted layer, or do nothing for one that was there."""
        if layer.key:
            try:
                self._snapshotter.commit(
                    layer.chain_id, layer.key, labels=layer.labels, parent=parent
                )
            except AlreadyExists:
                self._discard(layer)
            layer.key = ""
        layer.held.close()
        self._progress.update(event(layer.descriptor, Stage.DONE, layer.descriptor.size))

    def _discard(self, layer: Layer) -> None:
        """Remove the extraction snapshot of a layer that was not committed."""
        if not layer.key:
            return
        try:
            self._snapshotter.remove(layer.key)
        except LaminaError as error:
            log.warning("left for the next collection: %s", error, extra={"key": layer.key})

    def _hold(self, keys: Sequence[str]) -> None:
        resources = [Resource.snapshot(self._name, key) for key in keys]
        self._store.leases.add(self._lease, resources)


def layers_of(image: PlatformImage) -> list[Layer]:
    """Return the layers of an image, base first."""
    below: list[Digest | None] = [None, *image.chain]
    parts = zip(
        image.manifest.layers, image.config.rootfs.diff_ids, image.chain, below, strict=False
    )
    return [Layer(i, *part) for i, part in enumerate(parts)]


def extraction_key(chain_id: Digest) -> str:
    """Return a key as containerd makes them: a nanosecond count, three random bytes, the id."""
    unique = base64.urlsafe_b64encode(os.urandom(3)).decode("ascii")
    return f"{EXTRACT_PREFIX}{time.time_ns() % 1_000_000_000}-{unique} {chain_id}"
