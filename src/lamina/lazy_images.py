"""The lazy layers of a store: what they have and have cost, and having more of them fetched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from lamina.core.driver import Lazy, LazyFiles
from lamina.core.labels import IMAGE_REF, LAYER_DIGEST, REMOTE
from lamina.core.snapshot import Info, Kind
from lamina.core.units import format_size
from lamina.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    LaminaError,
    NotFound,
    Unavailable,
)
from lamina.formats.erofs.reader import Image
from lamina.images.platform import default_platform
from lamina.lazy.blob_ranges import ranges_of_layer, source_ranges, units_in
from lamina.lazy.control import LayerStatus
from lamina.lazy.cost import NOTHING, Cost
from lamina.lazy.launch import LazyWorker
from lamina.lazy.path_patterns import Pattern, in_order
from lamina.lazy.picture import PlacedFile
from lamina.lazy.sources.description import RegistryDescription
from lamina.lazy.sources.file import FileSource
from lamina.lazy.unit_list import WANTED, write_units
from lamina.lazy.view import LayerView, is_durable

if TYPE_CHECKING:
    from lamina.snapshotters.engine import Engine
    from lamina.store import Store

UNPACKED = "containerd.io/snapshot/lamina.unpacked"
GATE = "containerd.io/snapshot/lamina.gate"
_Part = tuple[str, Path]
_WAIT_SECONDS = 600.0
"""That the worker is asked to wait at once, where there is no limit."""


@dataclass(frozen=True, slots=True)
class LazyLayer:
    """One layer of an image, lazy or not; of a layer with several blobs, what one of them has.

    Attributes:
        chain_id: its snapshot's key.
        digest: of its blob; "" where that is not known.
        images: names of images that have it.
        gate: through which it is read; "" for one that is not lazy.
        state: `lazy`, `prefetching`, `completing`, `complete`, `doubtful`, `stopped`, `unpacked`,
            or `damaged`.
        reason: why it is stopped, unpacked or damaged.
        resume_seconds: when a stopped one goes on.
        local_bytes: that are in its cache and verified.
        total_bytes: `local_bytes` of a complete one.
        asked_bytes: of units that readers asked for, before it was complete.
        cost: what it has cost; nothing for one that is not lazy.
    """

    chain_id: str
    digest: str
    images: tuple[str, ...]
    gate: str = ""
    state: str = "unpacked"
    reason: str = ""
    resume_seconds: float = 0.0
    local_bytes: int = 0
    total_bytes: int = 0
    asked_bytes: int = 0
    cost: Cost = NOTHING


class LazyView(NamedTuple):
    """A lazy layer that is looked into, or what one of its blobs has.

    Attributes:
        layer: what it is.
        view: its cache.
        placed: the files that have data there.
        files: where it is.
    """

    layer: LazyLayer
    view: LayerView
    placed: list[PlacedFile]
    files: LazyFiles

    @property
    def part(self) -> _Part:
        """The key of its snapshot, and its cache."""
        return self.layer.chain_id, self.files.cache


class LazyImages:
    """The lazy layers of one snapshotter.

    Args:
        store: that has it; stays the caller's.
        snapshotter: its name.

    Raises:
        FailedPrecondition: it has no lazy layers.
        NotFound, SnapshotterSkipped: as `Store.snapshotter`.
    """

    def __init__(self, store: Store, snapshotter: str = "stargz") -> None:
        self._store = store
        self._name = snapshotter
        self._engine: Engine = store.snapshotter(snapshotter)
        if not isinstance(self._engine.driver, Lazy):
            hint = "name one that has, such as --snapshotter stargz"
            raise FailedPrecondition("look for lazy layers in", snapshotter, hint=hint)
        self._driver: Lazy = self._engine.driver
        self._worker = LazyWorker(self._engine.root)

    def layers(self, ref: str | None = None) -> list[LazyLayer]:
        """Return all layers of the snapshotter, or those of one image from its base on.

        Raises:
            NotFound: there is no such image.
            FailedPrecondition: none of its layers is in this snapshotter.
        """
        infos = {info.name: info for info in self._engine.walk() if info.kind is Kind.COMMITTED}
        chain = list(infos) if ref is None else self._chain(ref)
        found = self._found([infos[key] for key in chain if key in infos])
        if not found and ref is not None:
            raise self._elsewhere(ref)
        return [layer for layer, _ in found]

    @contextmanager
    def views(self, ref: str) -> Iterator[list[LazyView]]:
        """Give the lazy layers of an image for the block, each with its caches and their files.

        Raises:
            NotFound, FailedPrecondition: as `prefetch`.
            FormatError: something of a layer is damaged.
        """
        found: list[LazyView] = []
        try:
            for layer, files in self._lazy(ref):
                found.append(LazyView(layer, LayerView(files.cache), [], files))
                if files.image is not None:
                    found[-1].placed.extend(placed_files(files.image, files.device))
            yield found
        finally:
            for look in found:
                look.view.close()

    def trace(self, ref: str) -> list[dict[str, object]]:
        """Return what was read of an image, for `prefetch_trace` on any machine.

        Of each layer, the blob's digest and ranges of the blob in the order of their first use.
        """
        with self.views(ref) as views:
            return [
                {
                    "layer": look.layer.digest,
                    "ranges": [[*pair] for pair in source_ranges(look.view)],
                }
                for look in views
            ]

    def prefetch(self, ref: str, *, everything: bool = True) -> None:
        """Begin to fetch an image: what its layers want first, and then everything.

        Raises:
            NotFound: there is no such image.
            FailedPrecondition: it has no lazy layer.
            LaminaError: a layer cannot be served.
        """
        for layer, files in self._lazy(ref):
            self._begin(layer.chain_id, files.cache, everything=everything)

    def prefetch_paths(
        self, ref: str, patterns: Sequence[Pattern], *, everything: bool = False
    ) -> list[Pattern]:
        """Begin to fetch the files that patterns name, in their order, before all others.

        A path is looked for in the topmost lazy layer that has it. The layers are fetched side by
        side.

        Args:
            ref: the image.
            patterns: from `path_patterns.read_patterns`.
            everything: then fetch the rest.

        Returns:
            Those that name nothing in a lazy layer.

        Raises:
            FailedPrecondition: its layers have no names apart from their data.
            as `prefetch`.
        """
        matched: set[int] = set()
        wanted: dict[_Part, list[int]] = {}
        with self.views(ref) as views:
            if all(look.files.image is None for look in views):
                hint = "names are on the device itself; lamina lazy prefetch --trace takes a trace"
                raise FailedPrecondition("look for paths in image", ref, hint=hint)
            seen: dict[str, Path | None] = {}
            for look in reversed(views):
                # One image may have parts of a file on several devices.
                image = look.files.image
                visible = {
                    f.path: f for f in look.placed if seen.setdefault(f.path, image) == image
                }
                found = in_order(patterns, sorted(visible))
                matched.update(number for number, paths in enumerate(found) if paths)
                wanted[look.part] = [
                    unit
                    for paths in found
                    for path in paths
                    for unit in look.view.table.find(visible[path].start, visible[path].stop)
                ]
        self._want(wanted, everything=everything)
        return [pattern for number, pattern in enumerate(patterns) if number not in matched]

    def prefetch_trace(
        self, ref: str, trace: Iterable[Mapping[str, object]], *, everything: bool = False
    ) -> None:
        """Begin to fetch what a trace says that was read, in its order, before all else.

        Args:
            ref: the image.
            trace: as `trace` returns it; layers that the image does not have are passed over.
            everything: then fetch the rest.

        Raises:
            InvalidArgument: it is no trace.
            NotFound: it is of none of the image's lazy layers.
            as `prefetch`.
        """
        ranges = dict(map(ranges_of_layer, trace))
        wanted: dict[_Part, list[int]] = {}
        with self.views(ref) as views:
            for look in views:
                if look.layer.digest in ranges:
                    wanted[look.part] = units_in(look.view, ranges[look.layer.digest])
        if not wanted:
            hint = "it was recorded with other layers: record it anew"
            raise NotFound("find the layers of the trace in image", ref, hint=hint)
        self._want(wanted, everything=everything)

    def wait(self, ref: str, timeout: float | None = None) -> None:
        """Return when every byte of an image's lazy layers is local and survives a power loss.

        Args:
            ref: the image.
            timeout: seconds; None for no limit.

        Raises:
            DeadlineExceeded: it takes longer.
            LaminaError: it cannot be had now; it is tried again in the background.
        """
        deadline = None if timeout is None else monotonic() + timeout
        found = [(layer.chain_id, files.cache) for layer, files in self._lazy(ref)]
        for key, cache in found:
            self._begin(key, cache, everything=True)
        try:
            for _, cache in found:
                self._wait(cache, deadline)
        except DeadlineExceeded as error:
            raise DeadlineExceeded("fetch all of image", ref, hint=self._missing(ref)) from error

    def _wait(self, cache: Path, deadline: float | None) -> None:
        while not is_durable(cache):
            left = _WAIT_SECONDS if deadline is None else max(0.0, deadline - monotonic())
            try:
                self._worker.wait(cache, left)
            except (NotFound, Unavailable) as error:
                if not is_durable(cache):  # or it was let go of meanwhile
                    error.hint = error.hint or "`lamina lazy show` tells when it is tried again"
                    raise
            except DeadlineExceeded:
                if deadline is not None and monotonic() >= deadline:
                    raise

    def _missing(self, ref: str) -> str:
        """Say how much of an image is local, and what keeps the rest from coming."""
        layers = [layer for layer, _ in self._lazy(ref)]
        local = sum(layer.local_bytes for layer in layers)
        total = sum(layer.total_bytes for layer in layers)
        reasons = dict.fromkeys(layer.reason for layer in layers if layer.reason)
        return "; ".join((f"{format_size(local)} of {format_size(total)} are local", *reasons))

    def _lazy(self, ref: str) -> list[tuple[LazyLayer, LazyFiles]]:
        found = self._found_of(ref)
        if not found:
            hint = "`lamina lazy show` says why its layers were unpacked"
            raise FailedPrecondition("image has no lazy layer:", ref, hint=hint)
        return found

    def _want(self, wanted: Mapping[_Part, Sequence[int]], *, everything: bool) -> None:
        for (key, cache), units in wanted.items():
            if not (units or everything):
                continue
            if units:
                write_units(cache / WANTED, dict.fromkeys(units))
            self._begin(key, cache, everything=everything)

    def _begin(self, key: str, cache: Path, *, everything: bool) -> None:
        """Have a layer served, and fetched in the background; nothing for one that is durable."""
        id = self._engine.ids().get(key)
        if id is None or is_durable(cache):
            return
        self._driver.serve(id)
        try:
            self._worker.prefetch(cache, everything=everything)
        except (NotFound, Unavailable):
            if not is_durable(cache):  # or its last bytes have come meanwhile
                raise

    def _served(self) -> dict[str, LayerStatus]:
        try:
            report = self._worker.status()
        except Unavailable:
            return {}
        return {layer.directory: layer for layer in report.layers}

    def _found_of(self, ref: str) -> list[tuple[LazyLayer, LazyFiles]]:
        """Return the lazy layers of an image."""
        infos = {info.name: info for info in self._engine.walk() if info.kind is Kind.COMMITTED}
        found = self._found([infos[key] for key in self._chain(ref) if key in infos])
        if not found:
            raise self._elsewhere(ref)
        return [(layer, files) for layer, files in found if files is not None]

    def _found(self, infos: Sequence[Info]) -> list[tuple[LazyLayer, LazyFiles | None]]:
        """Return layers, those that are lazy for each of their caches."""
        ids, names, served = self._engine.ids(), self._names(), self._served()
        found: list[tuple[LazyLayer, LazyFiles | None]] = []
        for info in infos:
            id = ids.get(info.name)
            if id is None:
                continue
            images = names.get(info.name) or tuple(filter(None, [info.labels.get(IMAGE_REF)]))
            files = self._driver.lazy_layers(id)
            found += [(_lazy_layer(info, one, images, served), one) for one in files]
            # What is served by another layer has nothing of its own.
            if not files and REMOTE not in info.labels:
                digest = info.labels.get(LAYER_DIGEST, "")
                reason = info.labels.get(UNPACKED, "it was never to be lazy")
                found.append((LazyLayer(info.name, digest, images, reason=reason), None))
        return found

    def _elsewhere(self, ref: str) -> FailedPrecondition:
        hint = f"pull it with --snapshotter {self._name}, or name the one that has it"
        others = " or ".join(f"--snapshotter {name}" for name in self._others(ref))
        if others:
            hint = f"it is in another: {others}"
        return FailedPrecondition(f"image is not in {self._name}:", ref, hint=hint)

    def _others(self, ref: str) -> list[str]:
        """Return the snapshotters with lazy layers that have the layers of an image."""
        chain = self._chain(ref)
        others: list[str] = []
        for name in self._store.existing_snapshotters():
            with suppress(LaminaError):  # it does not work here
                engine = self._store.snapshotter(name)
                if isinstance(engine.driver, Lazy) and not engine.ids().keys().isdisjoint(chain):
                    others.append(name)
        return others

    def _names(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the images that have each layer."""
        names: dict[str, list[str]] = {}
        for image in self._store.images.catalogue.walk():
            with suppress(LaminaError):  # of another platform, or not fetched whole
                for key in self._store.images.select(image, default_platform()).chain:
                    names.setdefault(key, []).append(image.name)
        return {key: tuple(found) for key, found in names.items()}

    def _chain(self, ref: str) -> list[str]:
        """Return the keys of an image's layers from its base on."""
        try:
            image = self._store.image(ref)
        except NotFound:
            # A containerd has the image's record; the layers' labels name it.
            infos = self._engine.walk()
            found = [
                i for i in infos if i.labels.get(IMAGE_REF) == ref and i.kind is Kind.COMMITTED
            ]
            if not found:
                raise
            return _by_parent(found)
        return list(self._store.images.select(image, default_platform()).chain)


def _lazy_layer(
    info: Info, files: LazyFiles, images: tuple[str, ...], served: Mapping[str, LayerStatus]
) -> LazyLayer:
    digest, gate = info.labels.get(LAYER_DIGEST, ""), info.labels.get(GATE, "")
    try:
        view = LayerView(files.cache)
    except (LaminaError, OSError) as error:
        return LazyLayer(info.name, digest, images, gate, "damaged", str(error))
    with closing(view):
        source = view.layer.source
        if isinstance(source, RegistryDescription):
            digest = source.digest
        state, reason, seconds = _state(view, served.get(str(files.cache)))
        return LazyLayer(
            info.name, digest, images, gate or view.layer.gate, state, reason, seconds,
            view.local_bytes, view.unit_bytes, view.asked_bytes, view.cost,
        )  # fmt: skip


def placed_files(image: Path, device: int = 1) -> list[PlacedFile]:
    """Return the files of a layer's EROFS image that have data on a device, by their place.

    Raises:
        FormatError: it is damaged.
    """
    with closing(FileSource(image)) as source:
        reader = Image(source)
        found: dict[int, PlacedFile] = {}
        for path, node in reader.walk():
            if not node.is_regular or node.nid in found or not node.size:
                continue
            extents = [extent for extent in reader.extents(node) if extent.device == device]
            if extents:
                start = min(extent.offset for extent in extents)
                stop = max(extent.offset + extent.length for extent in extents)
                found[node.nid] = PlacedFile(os.fsdecode(path).lstrip("/"), start, stop)
    return sorted(found.values(), key=lambda file: file.start)


def _state(view: LayerView, status: LayerStatus | None) -> tuple[str, str, float]:
    if status is not None and status.doubt:
        hint = "every process that guarded it was killed; remove the image and pull it again"
        return "doubtful", hint, 0.0
    if view.is_complete:
        return "complete", "", 0.0
    if status is None:
        return "lazy", "", 0.0
    if status.error:
        return "damaged", status.error, 0.0
    if status.stage == "paused":
        return "stopped", status.reason, status.resume_seconds
    return {"first": "prefetching", "all": "completing"}.get(status.stage, "lazy"), "", 0.0


def _by_parent(infos: Sequence[Info]) -> list[str]:
    """Return the names of layers that stand on each other, from the base on."""
    names = {info.name for info in infos}
    below = {info.name: info.parent for info in infos}
    depth: dict[str, int] = {}
    for name in names:
        count, at = 0, name
        while at in below:
            count, at = count + 1, below[at]
        depth[name] = count
    return sorted(names, key=lambda name: depth[name])
