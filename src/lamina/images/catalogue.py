"""The images by name: each record points at a manifest or an index in the content store."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lamina.core.digest import Digest
from lamina.core.filters import FieldPath, Fields, label_field, parse
from lamina.core.labels import validate
from lamina.core.snapshot import EMPTY_LABELS
from lamina.errors import AlreadyExists, InvalidArgument, NotFound
from lamina.images.manifest import Descriptor
from lamina.meta.database import Database


@dataclass(frozen=True, slots=True)
class Image:
    """One record; times are nanoseconds since the epoch, set by the catalogue."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY_LABELS)
    created_ns: int = 0
    updated_ns: int = 0


class Catalogue:
    """The image records of one root; every method is one transaction unless it takes one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> Image:
        """Return the image of that name.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            row = connection.execute("SELECT * FROM images WHERE name=?", (name,)).fetchone()
        if row is None:
            raise NotFound("image", name, hint="lamina images ls shows those there are")
        return _from_row(row)

    def find(self, name: str) -> Image | None:
        """Return the image of that name, or None."""
        try:
            return self.get(name)
        except NotFound:
            return None

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Image]:
        """Yield the images that a filter matches, in byte order of the names.

        Fields: `name`, `target.digest`, `target.mediatype`, `labels.KEY`, `annotations.KEY`.

        Raises:
            InvalidArgument: a filter does not parse.
        """
        matches = parse(filters)
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM images ORDER BY name").fetchall()
        return (image for image in map(_from_row, rows) if matches(_fields(image)))

    def put(self, name: str, target: Descriptor, labels: Mapping[str, str] | None = None) -> Image:
        """Make the record, or point an existing one at `target`; its labels are added to.

        Raises:
            InvalidArgument: the name is empty, or a label larger than 4096 bytes.
        """
        with self._database.write() as connection:
            return self.put_in(connection, name, target, labels or {})

    def put_in(
        self,
        connection: sqlite3.Connection,
        name: str,
        target: Descriptor,
        labels: Mapping[str, str],
    ) -> Image:
        """Do as `put` does, as part of the write transaction that `connection` is in."""
        if not name or not name.isprintable():  # an archive's name may try to command a terminal
            raise InvalidArgument("name an image", repr(name), hint="use printable characters")
        validate(labels)
        row = connection.execute("SELECT * FROM images WHERE name=?", (name,)).fetchone()
        now = time.time_ns()
        old = _from_row(row) if row is not None else Image(name, target, {}, now)
        merged = {key: value for key, value in {**old.labels, **labels}.items() if value}
        image = Image(name, target, merged, old.created_ns, now)
        connection.execute(
            "INSERT OR REPLACE INTO images VALUES (?,?,?,?,?,?,?,?)",
            (
                name,
                target.digest,
                target.media_type,
                target.size,
                json.dumps(target.annotations),
                json.dumps(merged),
                image.created_ns,
                now,
            ),
        )
        return image

    def label(self, name: str, changes: Mapping[str, str], *, replace: bool = False) -> Image:
        """Set the labels given, delete those given as "", and with `replace` all others.

        Raises:
            NotFound: there is no such image.
            InvalidArgument: a label is larger than 4096 bytes.
        """
        with self._database.write() as connection:
            image = self.get(name)
            gone = dict.fromkeys(image.labels, "") if replace else {}
            return self.put_in(connection, name, image.target, {**gone, **changes})

    def tag(self, source: str, name: str, *, force: bool = False) -> Image:
        """Give an image a second name.

        Raises:
            NotFound: there is no image `source`.
            AlreadyExists: the name is taken, and not `force`.
        """
        with self._database.write() as connection:
            image = self.get(source)
            if not force and self.find(name) is not None:
                raise AlreadyExists("tag image", name, hint="give --force to move the name")
            return self.put_in(connection, name, image.target, image.labels)

    def delete(self, name: str) -> None:
        """Remove the record; a collection frees what nothing else names.

        Raises:
            NotFound: there is none of that name.
        """
        with self._database.write() as connection:
            if connection.execute("DELETE FROM images WHERE name=?", (name,)).rowcount == 0:
                raise NotFound("image", name)


def _fields(image: Image) -> Fields:
    def field(path: FieldPath) -> str | None:
        match path:
            case ("name",):
                return image.name
            case ("target", "digest"):
                return image.target.digest
            case ("target", "mediatype"):
                return image.target.media_type
            case ("labels", *rest) if rest:
                return label_field(image.labels, tuple(rest))
            case ("annotations", *rest) if rest:
                return label_field(image.target.annotations, tuple(rest))
        return None

    return field


def _from_row(row: sqlite3.Row) -> Image:
    target = Descriptor(
        media_type=row["media_type"],
        digest=Digest(row["digest"]),
        size=row["size"],
        annotations=json.loads(row["annotations"]),
    )
    labels = json.loads(row["labels"])
    return Image(row["name"], target, labels, row["created_ns"], row["updated_ns"])
