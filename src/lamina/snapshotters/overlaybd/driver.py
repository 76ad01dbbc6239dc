"""Storage of the overlaybd snapshotter.

    ROOT/snapshots/ID/fs           as overlayfs has it; of a layer of a device, what was unpacked
    ROOT/snapshots/ID/work         work directory of an Active snapshot
    ROOT/snapshots/ID/...          of a layer of a device: see `device_stack`
    ROOT/snapshots/ID/...          of one that writes to a device: see `writable`
    ROOT/lazy                      the worker that fetches what is read

Layers are claimed, and only their indexes are fetched.
A layer that was pulled whole is a file in `fs`, which a device is made of in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import msgspec

from lamina.core.disk_usage import disk_bytes
from lamina.core.driver import Ability, Claimed, Refused, Snapshot
from lamina.core.labels import IMAGE_LAYERS, SNAPSHOT_REF, UNPACKED
from lamina.core.mount import Mount
from lamina.core.snapshot import Kind, Usage
from lamina.errors import (
    DataLoss,
    FormatError,
    LaminaError,
    NotImplementedHere,
)
from lamina.formats.overlaybd.annotations import BLOB_DIGEST
from lamina.snapshotters.lazy_overlay import GATE_LABEL, LazyArguments
from lamina.snapshotters.lower_mounts import locked
from lamina.snapshotters.mappings import mapped_root, mapping_options
from lamina.snapshotters.overlaybd import labels as told
from lamina.snapshotters.overlaybd.device_stack import CACHE, DeviceStackDriver
from lamina.snapshotters.overlaybd.labels import DEFAULT_FS, Mode
from lamina.snapshotters.overlaybd.notes import (
    LAYER,
    LayerKind,
    LayerNote,
    write_note,
)
from lamina.snapshotters.overlaybd.writable import (
    SEALED,
    Below,
    Writables,
    is_writable,
    parse_size,
    written_bytes,
)
from lamina.snapshotters.stacked import bind

if TYPE_CHECKING:
    from lamina.core.problem import Problem

DEFAULT_VSIZE = "64"
"""GiB of a device with nothing below."""

_REASONS: Mapping[LayerKind, str] = {
    "local": "it was pulled whole, for the device of a layer above",
    "turbo": "it has metadata, for the device of a layer above",
    "trace": "it has no files, but says what is fetched first",
}
"""Why layers were unpacked that nothing is wrong with."""
_WRITTEN = "it was written here, as a layer of a device"


class OverlaybdDriver(DeviceStackDriver):
    """The overlaybd driver.

    Args:
        root: the snapshotter's directory; made when absent.
        prefetches: fetch at once what an acceleration layer names.
        mode: what Active snapshots change, where their labels do not say; None for a directory,
            by overlayfs.
        arguments: as for `LazyOverlayDriver`.
    """

    def __init__(
        self,
        root: Path,
        *,
        prefetches: bool = True,
        mode: Mode | None = None,
        **arguments: Unpack[LazyArguments],
    ) -> None:
        super().__init__(root, prefetches=prefetches, **arguments)
        self._mode = mode

    @functools.cached_property
    def _writables(self) -> Writables:
        return Writables(self._worker)

    # What the engine asks for

    def create(self, snapshot: Snapshot) -> None:
        """Make the directories, after making and mounting the device below.

        Raises:
            FailedPrecondition: the device cannot be made.
            LaminaError: one of its layers is damaged, or gone.
        """
        if not _is_of_device(snapshot.labels):
            self._require_device(snapshot.parents)
        mode = self._mode_of(snapshot)
        if mode is None:
            super().create(snapshot)
            return
        self.make(snapshot, mapped_root(snapshot.labels))
        size = parse_size(snapshot.labels.get(told.VSIZE, DEFAULT_VSIZE), told.VSIZE)
        self._writables.create(self.of(snapshot.id), mode, self._device_below(snapshot), size)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return one bind mount or one overlay; see `LazyOverlayDriver`.

        What is to be a layer of a device is unpacked to a directory of its own.
        """
        if _is_of_device(snapshot.labels):
            return [bind(self.fs(snapshot.id), "rw")]
        if is_writable(self.of(snapshot.id)):
            mapping: tuple[str, ...] = ()
            if Ability.REMAP_IDS in self.abilities:
                mapping = mapping_options(snapshot.labels)
            return self._writables.mounts(self.of(snapshot.id), mapping)
        self._require_device(snapshot.parents)
        return super().mounts(snapshot)

    def claim(self, snapshot: Snapshot) -> Claimed | Refused:
        """Take a layer whose blob can be read for served, and keep its indexes.

        Raises:
            LaminaError: it is one, and cannot be had, or is not what it should be.
        """
        labels = snapshot.labels
        if told.is_acceleration(labels):
            return Refused("it has nothing but a trace of what is read first")
        if told.target_in(labels) is not None:
            return Refused("it has the metadata of a TurboOCI layer, whose data is fetched lazily")
        try:
            blob = told.blob_in(labels)
            if blob is None:
                return self._refuse(snapshot.id, "it is no overlaybd layer")
            if not blob.reference:
                return self._refuse(snapshot.id, "its labels do not say which image it is of")
            self._take(snapshot, blob)
        except BaseException as error:
            self._undo(snapshot.id)
            if isinstance(error, FormatError):
                return self._refuse(snapshot.id, f"it is no overlaybd layer ({error})")
            if isinstance(error, LaminaError | OSError):
                self._note(snapshot.id, str(error))
            raise
        return Claimed({GATE_LABEL: self._gate})

    def seal(self, snapshot: Snapshot) -> Usage:
        """Measure; find out what kind of layer was unpacked.

        Raises:
            LaminaError: it is one that cannot be used where it is.
        """
        if is_writable(self.of(snapshot.id)):
            return self._seal_device(snapshot)
        note = self._note_of(snapshot.id) or self._unpacked(snapshot)
        usage = self.usage(snapshot)
        if note is None:
            return usage
        if note.kind != "remote" and _is_topmost(snapshot.labels):
            self._prepare_image(snapshot, note)
        files = [path for path in self.of(snapshot.id).iterdir() if path.is_file()]
        taken = sum(disk_bytes(path.stat()) for path in files)
        return Usage(usage.inodes + len(files), usage.size + taken)

    def settle(self, ids: Iterable[int]) -> None:
        """Remove what layers that are sealed have been made of."""
        for id in ids:
            self._writables.settle(self.of(id))

    def usage(self, snapshot: Snapshot) -> Usage:
        """Measure what a snapshot changes, be it files or blocks."""
        usage = super().usage(snapshot)
        return Usage(usage.inodes, usage.size + written_bytes(self.of(snapshot.id)))

    def fork(self, source: Snapshot, target: Snapshot) -> None:
        """Copy what a snapshot changes, as far as that is files.

        Raises:
            NotImplementedHere: it is blocks of a device.
        """
        if is_writable(self.of(source.id)):
            hint = "commit it, and prepare two on that"
            raise NotImplementedHere("fork a snapshot that writes to a device", hint=hint)
        super().fork(source, target)

    def let_go(self, id: int) -> None:
        """Have a layer's device served no more, nor one that is written to."""
        super().let_go(id)
        self._writables.let_go(self.of(id))

    def info_labels(self, id: int) -> Mapping[str, str]:
        """Return why a layer is not lazy, where it has no device of its own; and its file."""
        shown = dict(super().info_labels(id))
        try:
            note = self._note_of(id)
        except DataLoss:  # fsck tells of it; who lists or removes snapshots goes on
            return shown
        if note is None:
            return shown
        if note.kind == "local":
            shown[told.COMMIT_PATH] = str(self.of(id) / note.file)
        if note.kind in _REASONS and not self.is_lazy(id):
            was_written = Path(note.file).name == SEALED
            shown[UNPACKED] = _WRITTEN if was_written else _REASONS[note.kind]
        return shown

    def problem_of(self, id: int, *, deep: bool) -> Problem | None:
        """Look into the layers of a device; None where all is sound."""
        from lamina.snapshotters.overlaybd.check import device_problem

        return device_problem(id, self.of(id), self.of(id) / CACHE, deep=deep)

    def faults(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Yield also the layers of which nothing is left but the note."""
        from lamina.snapshotters.overlaybd.check import layer_problem

        yield from super().faults(exists)
        for id in self.ids():
            problem = layer_problem(id, self.of(id)) if exists(id) else None
            if problem is not None:
                yield problem

    # What that is made of

    def _take(self, snapshot: Snapshot, blob: told.Blob) -> None:
        from lamina.snapshotters.overlaybd.layers import keep_layer

        id = snapshot.id
        below = self._below(snapshot.parents)
        with self._access.patience():
            blob_note = keep_layer(self.of(id), self._access, blob)
        filesystem = told.filesystem_in(snapshot.labels)
        note = LayerNote("remote", below, filesystem, blob=blob_note)
        write_note(self.of(id), LAYER, note)
        if _is_topmost(snapshot.labels):
            with locked(self.point(id)):
                self._make_device(id, note)
            self._mount_new(id)

    def _unpacked(self, snapshot: Snapshot) -> LayerNote | None:
        """Find out whether what was unpacked is a layer of a device, and note it.

        Raises:
            FailedPrecondition: it is one, and the layer below it is of no device.
        """
        from lamina.snapshotters.overlaybd.unpacked import note_of_files

        found = note_of_files(self.fs(snapshot.id), snapshot.labels, self._access)
        if found is None:
            return None
        note = msgspec.structs.replace(found, below=self._below(snapshot.parents))
        write_note(self.of(snapshot.id), LAYER, note)
        return note

    def _mode_of(self, snapshot: Snapshot) -> Mode | None:
        """Return how a new snapshot is written to; None by overlayfs, or where nobody writes.

        Only what a device is below of, or nothing, can be blocks of one.

        Raises:
            InvalidArgument: its label says something else.
        """
        mode = told.mode_in(snapshot.labels) or self._mode
        if mode is None or snapshot.kind != Kind.ACTIVE or SNAPSHOT_REF in snapshot.labels:
            return None
        stack = self.stack(snapshot.parents)
        is_device = all(self._layer_note(id) is not None for id in stack) and len(stack) <= 1
        return mode if is_device else None

    def _device_below(self, snapshot: Snapshot) -> Below | None:
        for id in self.stack(snapshot.parents):
            note = self._device_note(id)
            return Below(self.of(id) / CACHE, self.factory, note.filesystem, note.size)
        return None

    def _seal_device(self, snapshot: Snapshot) -> Usage:
        """Make a layer of what was written to a device; it stays until `settle`."""
        from lamina.snapshotters.overlaybd.device import opened_stack

        id, directory = snapshot.id, self.of(snapshot.id)
        below = self._below(snapshot.parents)
        sealed = self.fs(id) / SEALED
        if below:
            with opened_stack([self.of(one) for one in below], self._access) as stack:
                filesystem = self._device_note(below[-1]).filesystem
                self._writables.seal(directory, sealed, stack)
        else:
            filesystem = DEFAULT_FS
            self._writables.seal(directory, sealed, None)
        note = LayerNote("local", below, filesystem, file=f"{self.fs(id).name}/{SEALED}")
        write_note(directory, LAYER, note)
        return Usage(1, disk_bytes(sealed.stat()))

    def _prepare_image(self, snapshot: Snapshot, note: LayerNote) -> None:
        """Make the device of an image whose topmost layer is being committed, and mount it."""
        if note.kind == "trace":
            self._require_device((snapshot.id, *snapshot.parents))
            for id in self.standing(snapshot.parents):
                self._mount_new(id)
            return
        with locked(self.point(snapshot.id)):
            self._make_device(snapshot.id, note)
        self._mount_new(snapshot.id)


def _is_of_device(labels: Mapping[str, str]) -> bool:
    """Tell whether an extraction snapshot is for a layer of a device, as far as labels tell."""
    return SNAPSHOT_REF in labels and BLOB_DIGEST in labels


def _is_topmost(labels: Mapping[str, str]) -> bool:
    """Tell whether no layer of its image comes above it, as far as labels tell."""
    above = labels.get(IMAGE_LAYERS, "")
    return bool(above) and "," not in above
