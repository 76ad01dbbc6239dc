"""The content store: blobs by digest, in containerd's layout.

    blobs/sha256/HEX          the blob, read-only
    ingest/HASH-OF-REF/       one being written (see `ingest`)

A blob is there when the metadata names it *and* its file has the right size. The file is renamed
into place, and removed, inside the metadata's write transaction, so both change together; what a
crash leaves in between is a file without record, which the next collection removes. Nothing is
synced while pulling: a record says which boot wrote its blob, `sync` makes all of them durable at
once, and a blob that an earlier boot left unsynced is hashed again before its first use.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lamina.core.digest import Digest, algorithm, encoded
from lamina.core.filters import FieldPath, Fields, label_field, parse
from lamina.core.units import format_size
from lamina.errors import (
    AlreadyExists,
    DataLoss,
    DigestMismatch,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from lamina.images.ingest import Writer, is_still, lock_ingest, remove_ingest, try_lock
from lamina.images.manifest import MAX_CONFIG_BYTES, Descriptor, check_blob, content_ref
from lamina.images.registry.cancel import Cancel
from lamina.images.remover import Remover, blob_path
from lamina.linux.sync import syncfs
from lamina.meta.boot import boot_id
from lamina.meta.content import ContentInfo, ContentTable
from lamina.meta.database import Database

if TYPE_CHECKING:
    from lamina.images.content_repair import ContentRepair

log = logging.getLogger(__name__)

DIRECTORY = "io.containerd.content.v1.content"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Ingest:
    """A blob that is not complete yet; `offset` bytes of `total` (0: unknown) are there."""

    ref: str
    offset: int
    total: int
    updated_ns: int


class ContentStore:
    """The blobs of one root.

    Args:
        root: directory of the store; made when absent.
        database: the root's metadata.
        boot: id of the running boot; None asks the kernel.
    """

    def __init__(self, root: Path, database: Database, *, boot: str | None = None) -> None:
        self.root = root
        self._boot = boot or boot_id()
        self._table = ContentTable(database, boot=self._boot)
        self._database = database
        self._ingest = root / "ingest"
        for directory in (root, root / "blobs", root / "blobs/sha256", self._ingest):
            directory.mkdir(mode=0o755, exist_ok=True)

    def info(self, digest: Digest) -> ContentInfo:
        """Describe the blob.

        Raises:
            NotFound: it is not there, or turned out to be damaged by a power failure.
        """
        found = self._table.find(digest)
        if found is None or not self._has_file(found[0]):
            raise NotFound("content", digest)
        info, unverified = found
        if unverified:
            self._recheck(info)
        return info

    def has(self, digest: Digest) -> bool:
        """Tell whether the blob is there."""
        try:
            self.info(digest)
        except NotFound:
            return False
        return True

    def path(self, digest: Digest) -> Path:
        """Return the blob's file.

        Raises:
            NotFound: it is not there.
        """
        self.info(digest)
        return blob_path(self.root, digest)

    def open(self, digest: Digest) -> BinaryIO:
        """Open the blob for reading; the caller closes it.

        Raises:
            NotFound: it is not there.
        """
        return open(self.path(digest), "rb")

    def read(self, digest: Digest) -> bytes:
        """Return a small blob (a manifest, a configuration) whole, and verified.

        Raises:
            NotFound: it is not there.
            InvalidArgument: it is larger than 8 MiB.
            DataLoss: the file was changed.
        """
        info = self.info(digest)
        if info.size > MAX_CONFIG_BYTES:
            raise InvalidArgument(f"read {info.size} bytes into memory", digest)
        data = blob_path(self.root, digest).read_bytes()
        try:
            check_blob(data, Descriptor(media_type="", digest=digest, size=info.size))
        except DigestMismatch as error:
            hint = f"remove it (lamina content rm {digest}) and pull the image again"
            raise DataLoss("read damaged blob", blob_path(self.root, digest), hint=hint) from error
        return data

    def walk(self, filters: Sequence[str] = ()) -> Iterator[ContentInfo]:
        """Yield the blobs that one of the filters matches (`digest`, `size`, `labels.KEY`).

        Raises:
            InvalidArgument: a filter does not parse.
        """
        matches = parse(filters)
        found = self._table.all()
        return (i for i in found if matches(_fields(i)) and self._has_file(i))

    def label(self, digest: Digest, changes: Mapping[str, str]) -> ContentInfo:
        """Set the labels given and delete those given as "".

        Raises:
            NotFound: no such blob.
            InvalidArgument: a label is larger than 4096 bytes.
        """
        return self._table.label(digest, changes)

    def delete(self, digest: Digest) -> None:
        """Remove the blob.

        Raises:
            NotFound: it is not there.
        """
        found = self._table.find(digest)
        with self.removing() as remove:
            remove(digest)
        if found is None:
            raise NotFound("content", digest)

    def open_writer(
        self, ref: str, *, expected: Descriptor | None = None, cancel: Cancel | None = None
    ) -> Writer:
        """Begin, or go on with, writing a blob; waits while another process or thread writes it.

        Args:
            ref: name of the ingest, such as `layer-sha256:...`; one writer at a time has it.
            expected: what the blob must be; None if that is known only at the end, in which case
                nothing is resumed.
            cancel: ends the waiting.

        Raises:
            AlreadyExists: the blob is there already, possibly since this call began to wait.
            Cancelled: told so while waiting.
        """
        directory = self._ingest / hashlib.sha256(ref.encode()).hexdigest()
        while True:
            if expected is not None and self.has(expected.digest):
                raise AlreadyExists("content", expected.digest)
            lock = lock_ingest(directory, cancel or Cancel())
            if lock is None:
                continue
            with lock:
                if expected is not None and self.has(expected.digest):
                    remove_ingest(directory)
                    continue
                return Writer(ref, directory, expected, self._publish, lock, self._boot)

    def put(self, data: bytes, descriptor: Descriptor) -> None:
        """Store bytes that are in memory; those that are there already are no error.

        Raises:
            DigestMismatch: they are not what the descriptor says.
        """
        check_blob(data, descriptor)
        try:
            writer = self.open_writer(content_ref(descriptor), expected=descriptor)
        except AlreadyExists:
            return
        with writer:
            writer.restart()
            writer.write(data)
            writer.commit()

    def ingest(
        self, ref: str, stream: BinaryIO, *, size: int | None = None, digest: Digest | None = None
    ) -> Digest:
        """Store what a stream yields up to its end, and return its digest.

        Nothing names it then: the next collection takes it, unless it gets the label
        `containerd.io/gc.root` or a lease holds it.

        Args:
            ref: name of the ingest while it is written.
            stream: read to its end; not closed.
            size: how many bytes that must be.
            digest: what they must be.

        Raises:
            DigestMismatch: they are not; nothing is kept.
        """
        with self.open_writer(ref) as writer:
            try:
                while data := stream.read(_CHUNK):
                    writer.write(data)
                if size is not None and writer.offset != size:
                    what = f"{ref}: size in bytes"
                    got = str(writer.offset)
                    raise DigestMismatch("write", what, expected=str(size), got=got)
                if digest is not None and writer.digest != digest:
                    raise DigestMismatch("write", ref, expected=digest, got=writer.digest)
                return writer.commit()
            except BaseException:
                writer.abort()
                raise

    def ingests(self) -> list[Ingest]:
        """List what is being written or waits to be resumed."""
        found = (_read_ingest(directory) for directory in self._ingest.iterdir())
        return sorted((i for i in found if i is not None), key=lambda ingest: ingest.ref)

    def require_space(self, size: int) -> None:
        """Check that so many bytes can be written.

        Raises:
            ResourceExhausted: the disk has less.
        """
        disk = os.statvfs(self.root)
        free = disk.f_bavail * disk.f_frsize
        if size > free:
            raise ResourceExhausted(
                f"download {format_size(size)} ({size} bytes) with {format_size(free)} free on",
                self.root,
                hint="free some space, or use a --root on another disk",
            )

    def sync(self) -> None:
        """Make every blob survive power loss: one syncfs for all of them."""
        digests = self._table.unsynced()
        if not digests:
            return
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
        self._table.mark_synced(digests)

    @property
    def repair(self) -> ContentRepair:
        """What mends the store where it and the disk have got out of step."""
        from lamina.images.content_repair import ContentRepair  # only a check needs it

        return ContentRepair(self.root, self._table)

    # For the collector

    def records(self) -> list[ContentInfo]:
        """Return all records, those whose file is lost included."""
        return self._table.all()

    @contextmanager
    def removing(self) -> Iterator[Remover]:
        """Run the body as a write transaction in which blobs can be removed.

        Their space is freed after the transaction, so a large blob keeps no one waiting.
        """
        remover = Remover(self.root, self._table)
        try:
            with self._database.write() as connection:
                remover.connection = connection
                yield remover
        finally:
            remover.free()

    def remove_ingests(self, held: Set[str]) -> list[str]:
        """Remove unfinished blobs that nobody writes now; return their refs.

        Those whose digest is in `held` are kept, to be resumed.
        """
        removed: list[str] = []
        for directory in self._ingest.iterdir():
            found = _read_ingest(directory)
            if found is not None and _ref_digest(found.ref) in held:
                continue
            if _remove_unlocked(directory):
                removed.append(found.ref if found else directory.name)
        return removed

    def _has_file(self, info: ContentInfo) -> bool:
        try:
            return blob_path(self.root, info.digest).stat().st_size == info.size
        except FileNotFoundError:
            return False

    def _publish(self, data: Path, digest: Digest, size: int, labels: Mapping[str, str]) -> None:
        """Put a finished file into place and record it."""
        target = blob_path(self.root, digest)
        target.parent.mkdir(mode=0o755, exist_ok=True)
        with self._database.write() as connection:
            data.rename(target)
            self._table.insert(connection, digest, size, labels)

    def _recheck(self, info: ContentInfo) -> None:
        """Hash a blob that an earlier boot left unsynced; drop it where it is damaged."""
        with open(blob_path(self.root, info.digest), "rb") as file:
            found = hashlib.file_digest(file, algorithm(info.digest)).hexdigest()
        if found == encoded(info.digest):
            self._table.mark_synced([info.digest])
            return
        log.warning("dropping blob damaged by a power failure", extra={"digest": info.digest})
        with self.removing() as remove:
            remove(info.digest)
        raise NotFound("content", info.digest)


def _fields(info: ContentInfo) -> Fields:
    def field(path: FieldPath) -> str | None:
        match path:
            case ("digest",):
                return info.digest
            case ("size",):
                return str(info.size)
            case ("labels", *rest) if rest:
                return label_field(info.labels, tuple(rest))
        return None

    return field


def _ref_digest(ref: str) -> str:
    """Return the digest that a ref such as `layer-sha256:...` ends with."""
    return ref[at:] if (at := ref.rfind("sha256:")) >= 0 else ref


def _read_ingest(directory: Path) -> Ingest | None:
    """Describe an ingest; None while it is being made or removed."""
    try:
        ref = (directory / "ref").read_text(encoding="utf-8")
        total = int((directory / "total").read_text(encoding="ascii") or 0)
        status = (directory / "data").stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return Ingest(ref, status.st_size, total, status.st_mtime_ns)


def _remove_unlocked(directory: Path) -> bool:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        if not try_lock(fd) or not is_still(directory, fd):
            return False
        remove_ingest(directory)
        return True
    finally:
        os.close(fd)
