"""Unpacking: the layers of an image become a chain of Committed snapshots named by chain id.

For each layer an *extraction snapshot* is prepared, the layer applied to it while its blob may
still be downloading, and the result committed under the chain id. The labels given to Prepare ask
a remote snapshotter whether it has the layer already: AlreadyExists, with the chain id there, is
its "yes", and then nothing is fetched. Snapshots whose mounts are read-only are filled already and
only committed.

Where the driver can rebase, extraction snapshots are prepared without parent and all layers unpack
at the same time; commits still follow the layers' order, each naming the one below as its parent.
"""

from __future__ import annotations

import base64
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.digest import Digest
from lamina.core.labels import (
    DIFF_ID,
    GC_REF_SNAPSHOT,
    PARENT_CHAIN_ID,
    SNAPSHOT_REF,
    UNCOMPRESSED,
    inherited,
)
from lamina.core.mount import Mount
from lamina.core.snapshot import Snapshotter
from lamina.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DigestMismatch,
    LaminaError,
    NotFound,
)
from lamina.images.download import Download, event
from lamina.images.fetch import Fetcher
from lamina.images.layer_lock import layer_lock
from lamina.images.manifest import Descriptor
from lamina.images.progress import Progress, Stage, StageClock
from lamina.images.registry.cancel import Cancel
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage
from lamina.layer.limits import Applied, LayerLimits
from lamina.layer.target import LayerTarget, layer_target
from lamina.meta.leases import EXTRACT_PREFIX, Resource
from lamina.mount import temp_mount
from lamina.mount.watch import has_own_filesystem, watched_writes

if TYPE_CHECKING:
    from lamina.layer.process import LayerJob, LayerWorkers

log = logging.getLogger(__name__)

PREPARE_TRIES = 3
LAYERS_AT_ONCE = 8
"""Layers that are between Prepare and Commit at a time, where the driver can rebase."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to unpack: a snapshotter, its name, and whether its driver can rebase."""

    name: str
    snapshotter: Snapshotter
    rebase: bool = False


@dataclass(slots=True, eq=False)
class _Layer:
    """One layer on its way; `held` undoes what was done for it, and lets go of its lock."""

    position: int
    descriptor: Descriptor
    diff_id: Digest
    chain_id: Digest
    below: Digest | None
    key: str = ""
    download: Download | None = None
    held: ExitStack = field(default_factory=ExitStack)

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the extraction snapshot, and of the committed one."""
        labels = inherited(self.descriptor.annotations)
        labels |= {SNAPSHOT_REF: self.chain_id, DIFF_ID: self.diff_id}
        return labels | ({PARENT_CHAIN_ID: self.below} if self.below else {})


class Unpacker:
    """Unpacks images to one snapshotter, for one operation.

    Args:
        lease: id of the lease that holds the snapshots until an image names them.
        fetcher: where the blobs come from.
        workers: processes that apply layers.
    """

    def __init__(
        self,
        store: ImageStore,
        destination: Destination,
        lease: str,
        *,
        fetcher: Fetcher,
        workers: LayerWorkers,
        limits: LayerLimits,
        progress: Progress,
        clock: StageClock,
        cancel: Cancel,
    ) -> None:
        self._store = store
        self._name = destination.name
        self._snapshotter = destination.snapshotter
        self._rebase = destination.rebase
        self._lease = lease
        self._fetcher = fetcher
        self._workers = workers
        self._limits = limits
        self._progress = progress
        self._clock = clock
        self._cancel = cancel

    def unpack(self, image: PlatformImage) -> None:
        """Make the chain of snapshots; what of it is there already is used.

        Raises:
            DigestMismatch: a layer is not what its digest or diff id says.
            FormatError, ResourceExhausted: a layer is damaged, or asks for too much.
            Cancelled: told so. Whatever the error, no extraction snapshot is left.
        """
        if not image.chain:
            return
        # Before any of them is looked up, so that no collection takes away what is found.
        self._hold(image.chain)
        layers = _layers(image)
        missing = layers[self._present(layers) :]
        for layer in layers[: len(layers) - len(missing)]:
            self._progress.update(event(layer.descriptor, Stage.EXISTS, layer.descriptor.size))
        self._fetcher.require_space([layer.descriptor for layer in missing])
        if self._rebase and len(missing) > 1:
            self._unpack_at_once(missing)
        else:
            self._unpack_in_turn(missing)
        label = {f"{GC_REF_SNAPSHOT}.{self._name}": image.chain[-1]}
        self._store.content.label(image.manifest.config.digest, label)

    def _present(self, layers: Sequence[_Layer]) -> int:
        """Return how many layers, from the base on, are there.

        One does not imply those below it: a layer may be lost while others stand on it.
        """
        for layer in layers:
            if not self._exists(layer.chain_id):
                return layer.position
        return len(layers)

    def _exists(self, chain_id: Digest) -> bool:
        try:
            self._snapshotter.stat(chain_id)
        except NotFound:  # or taken by a power loss, and to be extracted anew
            return False
        return True

    def _unpack_in_turn(self, layers: Sequence[_Layer]) -> None:
        """Extract each layer on top of the one below; downloads run ahead of it."""
        started = False
        for layer in layers:
            with layer.held:
                self._lock(layer)
                if self._exists(layer.chain_id):
                    self._progress.update(event(layer.descriptor, Stage.EXISTS))
                    continue
                mounts = self._prepare(layer, layer.below or "")
                if mounts and not started and not mounts[-1].read_only:
                    started = True
                    rest = layers[layers.index(layer) :]
                    for each, download in zip(rest, self._downloads(rest), strict=True):
                        each.download = download
                self._fill(layer, mounts, rebase=False)
                self._commit(layer, "")
        for layer in layers:
            if layer.download is not None:
                layer.download.wait()

    def _unpack_at_once(self, layers: Sequence[_Layer]) -> None:
        """Extract all layers side by side and commit them in order."""
        first_error: list[BaseException] = []
        guard = threading.Lock()

        def failed(future: Future[None]) -> None:
            error = future.exception()
            with guard:
                if error is not None and not first_error:
                    first_error.append(error)
                    self._cancel.set()

        with ExitStack() as stack:
            for layer in layers:
                stack.push(layer.held)
            pool = stack.enter_context(ThreadPoolExecutor(LAYERS_AT_ONCE, "lamina-unpack"))
            try:
                futures = [pool.submit(self._extract_alone, layer) for layer in layers]
                for future in futures:
                    future.add_done_callback(failed)
                for layer, future in zip(layers, futures, strict=True):
                    future.result()
                    self._commit(layer, layer.below or "")
            except BaseException as error:
                self._cancel.set()
                if isinstance(error, Cancelled) and first_error:
                    raise first_error[0] from None
                raise

    def _extract_alone(self, layer: _Layer) -> None:
        self._lock(layer)
        if self._exists(layer.chain_id):
            return
        mounts = self._prepare(layer, "")
        if mounts and not mounts[-1].read_only:
            [layer.download] = self._downloads([layer])
        self._fill(layer, mounts, rebase=layer.below is not None)

    def _lock(self, layer: _Layer) -> None:
        self._cancel.check("unpack layer", layer.descriptor.digest)
        lock = layer_lock(self._store.locks, self._name, layer.chain_id, self._cancel)
        layer.held.enter_context(lock)

    def _downloads(self, layers: Sequence[_Layer]) -> list[Download]:
        return self._fetcher.layers([layer.descriptor for layer in layers])

    def _prepare(self, layer: _Layer, parent: str) -> list[Mount]:
        """Make the extraction snapshot; no mounts if the snapshotter turns out to have the layer.

        Raises:
            Aborted: the snapshotter says AlreadyExists and still does not have the layer.
        """
        for _ in range(PREPARE_TRIES):
            key = _extraction_key(layer.chain_id)
            self._hold([key])
            try:
                mounts = self._snapshotter.prepare(key, parent, labels=layer.labels)
            except AlreadyExists:
                if self._exists(layer.chain_id):
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

    def _fill(self, layer: _Layer, mounts: list[Mount], *, rebase: bool) -> None:
        if layer.download is None or not mounts or mounts[-1].read_only:
            return
        with ExitStack() as stack:
            target = layer_target(mounts, rebase=rebase)
            if target is None:
                path = stack.enter_context(temp_mount(mounts, dir=self._store.mounts))
                if has_own_filesystem(mounts):
                    stack.enter_context(watched_writes(mounts, path))
                target = LayerTarget(path)
            applied = self._apply(layer, layer.download, target)
        self._store.content.label(layer.descriptor.digest, {UNCOMPRESSED: applied.diff_id})
        self._progress.update(event(layer.descriptor, Stage.UNPACKED, layer.descriptor.size))

    def _apply(self, layer: _Layer, download: Download, target: LayerTarget) -> Applied:
        """Apply the layer while it arrives; a failed download is what is reported, if it failed."""

        def start(blob: Path, available: int) -> LayerJob:
            return self._workers.start(
                blob,
                layer.descriptor.media_type,
                target,
                size=layer.descriptor.size,
                available=available,
                diff_id=layer.diff_id,
                limits=self._limits,
            )

        with (
            self._cancel.interrupting(download.give_up),
            download.feeding(start) as job,
            self._cancel.interrupting(job.cancel),
        ):
            self._progress.update(event(layer.descriptor, Stage.UNPACKING))
            try:
                with self._clock.running("unpack"):
                    applied = job.result()
            except BaseException as error:
                job.cancel()
                download.check()
                raise _of_layer(error, layer) from error
            download.wait()
        return applied

    def _commit(self, layer: _Layer, parent: str) -> None:
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

    def _discard(self, layer: _Layer) -> None:
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


def _of_layer(error: BaseException, layer: _Layer) -> BaseException:
    """Return the error with the name of the layer, which its worker does not know."""
    digest = layer.descriptor.digest
    if isinstance(error, DigestMismatch):
        what = "check diff id of layer"
        return DigestMismatch(what, digest, expected=error.expected, got=error.got)
    if isinstance(error, LaminaError):
        error.what = f"unpack layer {digest}: {error.what}"
    return error


def _layers(image: PlatformImage) -> list[_Layer]:
    below: list[Digest | None] = [None, *image.chain]
    parts = zip(
        image.manifest.layers, image.config.rootfs.diff_ids, image.chain, below, strict=False
    )
    return [_Layer(i, *part) for i, part in enumerate(parts)]


def _extraction_key(chain_id: Digest) -> str:
    """Return a key as containerd makes them: a nanosecond count, three random bytes, the id."""
    unique = base64.urlsafe_b64encode(os.urandom(3)).decode("ascii")
    return f"{EXTRACT_PREFIX}{time.time_ns() % 1_000_000_000}-{unique} {chain_id}"
