"""The lazy layers of a store: what they have and have cost, and having more of them fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from lamina.core.driver import Lazy, LazyFiles
from lamina.core.labels import IMAGE_REF, LAYER_DIGEST
from lamina.core.snapshot import Info, Kind
from lamina.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    FormatError,
    LaminaError,
    NotFound,
    Unavailable,
)
from lamina.formats.erofs.reader import Image
from lamina.images.platform import Platform, default_platform
from lamina.lazy.control import LayerStatus
from lamina.lazy.cost import NOTHING, Cost
from lamina.lazy.launch import LazyWorker
from lamina.lazy.path_patterns import Pattern, in_order
from lamina.lazy.picture import PlacedFile
from lamina.lazy.sources.description import RegistryDescription
from lamina.lazy.sources.file import FileSource
from lamina.lazy.unit_list import WANTED, stretches, write_units
from lamina.lazy.view import LayerView

if TYPE_CHECKING:
    from lamina.snapshotters.engine import Engine
    from lamina.store import Store

UNPACKED = "containerd.io/snapshot/lamina.unpacked"
GATE = "containerd.io/snapshot/lamina.gate"
_DEVICE = 1
"""Of the EROFS image: the cache file."""


@dataclass(frozen=True, slots=True)
class LazyLayer:
    """One layer of an image, lazy or not.

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
        self._engine: Engine = store.snapshotter(snapshotter)
        if not isinstance(self._engine.driver, Lazy):
            hint = "name one that has, such as --snapshotter stargz"
            raise FailedPrecondition("look for lazy layers in", snapshotter, hint=hint)
        self._driver: Lazy = self._engine.driver
        self._worker = LazyWorker(self._engine.root)

    def layers(self, ref: str | None = None) -> list[LazyLayer]:
        """Return all layers of the snapshotter, or those of one image from its base on.

        Raises:
            NotFound: there is no such image, or it is not unpacked here.
        """
        infos = {info.name: info for info in self._engine.walk() if info.kind is Kind.COMMITTED}
        ids, names, served = self._engine.ids(), self._names(), self._served()
        chain = list(infos) if ref is None else self._chain(ref)
        return [
            self._layer(infos[key], ids[key], names.get(key, ()), served)
            for key in chain
            if key in infos and key in ids
        ]

    @contextmanager
    def views(self, ref: str) -> Iterator[list[tuple[LazyLayer, LayerView, list[PlacedFile]]]]:
        """Give the lazy layers of an image for the block, each with its cache and its files.

        Raises:
            NotFound: as `layers`.
            FormatError: something of a layer is damaged.
        """
        found: list[tuple[LazyLayer, LayerView, list[PlacedFile]]] = []
        try:
            for layer in self.layers(ref):
                files = self._files(layer.chain_id)
                if files is None:
                    continue
                found.append((layer, LayerView(files.cache), placed_files(files.image)))
            yield found
        finally:
            for _, view, _ in found:
                view.close()

    def trace(self, ref: str) -> list[dict[str, object]]:
        """Return what was read of an image, for `prefetch_trace` on any machine.

        Of each layer, the blob's digest and ranges of the blob in the order of their first use.
        """
        with self.views(ref) as views:
            return [
                {"layer": layer.digest, "ranges": list(_source_ranges(view))}
                for layer, view, _ in views
            ]

    def prefetch(self, ref: str, *, everything: bool = True) -> None:
        """Begin to fetch an image: what its layers want first, and then everything.

        Raises:
            NotFound: as `layers`.
            FailedPrecondition: the image has no lazy layer.
            LaminaError: a layer cannot be served.
        """
        for layer in self._lazy(ref):
            self._begin(layer.chain_id, everything=everything)

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
            as `prefetch`.
        """
        self._lazy(ref)
        matched: set[int] = set()
        wanted: dict[str, list[int]] = {}
        with self.views(ref) as views:
            seen: set[str] = set()
            for layer, view, files in reversed(views):
                visible = {file.path: file for file in files if file.path not in seen}
                seen.update(visible)
                found = in_order(patterns, sorted(visible))
                matched.update(number for number, paths in enumerate(found) if paths)
                wanted[layer.chain_id] = [
                    unit
                    for paths in found
                    for path in paths
                    for unit in view.table.find(visible[path].start, visible[path].stop)
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
            FormatError: it is no trace.
            NotFound: it is of none of the image's lazy layers.
            as `prefetch`.
        """
        self._lazy(ref)
        ranges = dict(map(_traced, trace))
        wanted: dict[str, list[int]] = {}
        with self.views(ref) as views:
            for layer, view, _ in views:
                if layer.digest in ranges:
                    wanted[layer.chain_id] = _units_of(view, ranges[layer.digest])
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
        layers = [layer for layer in self._lazy(ref) if layer.state != "complete"]
        for layer in layers:
            self._begin(layer.chain_id, everything=True)
        for layer in layers:
            self._wait(layer.chain_id, deadline)

    def _wait(self, key: str, deadline: float | None) -> None:
        files = self._files(key)
        while files is not None:
            left = 600.0 if deadline is None else max(0.0, deadline - monotonic())
            try:
                self._worker.wait(files.cache, left)
            except (NotFound, Unavailable):
                if not self._is_complete(files):  # or it was let go of meanwhile
                    raise
            except DeadlineExceeded:
                if deadline is None or monotonic() < deadline:
                    continue
                raise
            return

    def _is_complete(self, files: LazyFiles) -> bool:
        with closing(LayerView(files.cache)) as view:
            return view.is_complete

    def _lazy(self, ref: str) -> list[LazyLayer]:
        found = [layer for layer in self.layers(ref) if layer.state != "unpacked"]
        if not found:
            hint = "`lamina lazy show` says why its layers were unpacked"
            raise FailedPrecondition("fetch lazy image", ref, hint=hint)
        return found

    def _want(self, wanted: Mapping[str, Sequence[int]], *, everything: bool) -> None:
        for key, units in wanted.items():
            files = self._files(key)
            if files is None or not (units or everything):
                continue
            if units:
                write_units(files.cache / WANTED, dict.fromkeys(units))
            self._begin(key, everything=everything)

    def _begin(self, key: str, *, everything: bool) -> None:
        """Have a layer served, and fetched in the background."""
        files = self._files(key)
        if files is None:
            return
        self._driver.serve(self._engine.ids()[key])
        with suppress(NotFound, Unavailable):
            self._worker.prefetch(files.cache, everything=everything)
            return
        if not self._is_complete(files):
            self._worker.prefetch(files.cache, everything=everything)  # to say what is wrong

    def _files(self, key: str) -> LazyFiles | None:
        id = self._engine.ids().get(key)
        return None if id is None else self._driver.lazy_layer(id)

    def _served(self) -> dict[str, LayerStatus]:
        try:
            report = self._worker.status()
        except Unavailable:
            return {}
        return {layer.directory: layer for layer in report.layers}

    def _layer(
        self, info: Info, id: int, images: tuple[str, ...], served: Mapping[str, LayerStatus]
    ) -> LazyLayer:
        ref = info.labels.get(IMAGE_REF, "")
        names = images or ((ref,) if ref else ())
        digest = info.labels.get(LAYER_DIGEST, "")
        files = self._driver.lazy_layer(id)
        if files is None:
            reason = info.labels.get(UNPACKED, "it was never to be lazy")
            return LazyLayer(info.name, digest, names, reason=reason)
        gate = info.labels.get(GATE, "")
        try:
            view = LayerView(files.cache)
        except (LaminaError, OSError) as error:
            return LazyLayer(info.name, digest, names, gate, "damaged", str(error))
        with closing(view):
            source = view.layer.source
            if isinstance(source, RegistryDescription):
                digest = source.digest
            state, reason, seconds = _state(view, served.get(str(files.cache)))
            return LazyLayer(
                info.name, digest, names, gate or view.layer.gate, state, reason, seconds,
                view.local_bytes, view.unit_bytes, view.asked_bytes, view.cost,
            )  # fmt: skip

    def _names(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the images that have each layer."""
        names: dict[str, list[str]] = {}
        for image in self._store.images.catalogue.walk():
            with suppress(LaminaError):  # of another platform, or not fetched whole
                for key in self._store.images.select(image, default_platform()).chain:
                    names.setdefault(key, []).append(image.name)
        return {key: tuple(found) for key, found in names.items()}

    def _chain(self, ref: str, platform: Platform | None = None) -> list[str]:
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
        return list(self._store.images.select(image, platform or default_platform()).chain)


def placed_files(image: Path) -> list[PlacedFile]:
    """Return the files of a layer's EROFS image that have data on its device, by their place.

    Raises:
        FormatError: it is damaged.
    """
    with closing(FileSource(image)) as source:
        reader = Image(source)
        found: dict[int, PlacedFile] = {}
        for path, node in reader.walk():
            if not node.is_regular or node.nid in found or not node.size:
                continue
            extents = [extent for extent in reader.extents(node) if extent.device == _DEVICE]
            if extents:
                start = min(extent.offset for extent in extents)
                stop = max(extent.offset + extent.length for extent in extents)
                found[node.nid] = PlacedFile(os.fsdecode(path).lstrip("/"), start, stop)
    return sorted(found.values(), key=lambda file: file.start)


def read_trace(lines: Iterable[str], name: str) -> list[dict[str, object]]:
    """Return the lines of a trace: each a JSON object, as `lamina lazy trace` prints them.

    Raises:
        FormatError: a line is no JSON object.
    """
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise _no_trace(f"line {number}: {error}", name) from error
        if not isinstance(value, dict):
            raise _no_trace(f"line {number}: {type(value).__name__}", name)
        found.append(value)
    return found


def _traced(value: Mapping[str, object]) -> tuple[str, list[tuple[int, int]]]:
    digest, ranges = value.get("layer"), value.get("ranges")
    if not isinstance(digest, str) or not isinstance(ranges, list):
        raise _no_trace("a line without layer or ranges", digest)
    for pair in ranges:
        if not (
            isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) is int for n in pair)
        ):
            raise _no_trace(f"the range {pair!r:.60}", digest)
    return digest, [(start, stop) for start, stop in ranges]


def _no_trace(got: str, source: object) -> FormatError:
    expected = "a line of JSON for each layer, with the ranges that were read"
    return FormatError("trace", 0, expected=expected, got=got, source=source)


def _source_ranges(view: LayerView) -> Iterator[tuple[int, int]]:
    for stretch in stretches(view.trace):
        yield (
            view.table.source_range(stretch.start)[0],
            view.table.source_range(stretch.stop - 1)[1],
        )


def _units_of(view: LayerView, ranges: Iterable[tuple[int, int]]) -> list[int]:
    """Return the units that have bytes of the blob in these ranges, in their order."""
    from bisect import bisect_right

    count = len(view.table)
    order = sorted(range(count), key=lambda number: view.table.source_range(number)[0])
    starts = [view.table.source_range(number)[0] for number in order]
    found: dict[int, None] = {}
    for start, stop in ranges:
        index = max(0, bisect_right(starts, start) - 1)
        while index < count and starts[index] < stop:
            if view.table.source_range(order[index])[1] > start:
                found[order[index]] = None
            index += 1
    return list(found)


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
