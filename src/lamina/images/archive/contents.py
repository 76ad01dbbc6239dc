"""Taking the members of an archive into the content store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lamina.core.digest import Digest, parse_digest
from lamina.errors import AlreadyExists, FormatError, InvalidArgument, ResourceExhausted
from lamina.images.archive.members import Member
from lamina.images.content import ContentStore
from lamina.images.manifest import MAX_CONFIG_BYTES, Descriptor
from lamina.images.operation import Operation

MAX_MEMBERS = 100_000
MAX_DOCUMENT_BYTES = 64 << 20
"""All documents of an archive together; they are kept in memory until the last member is read."""
_MAX_LINKS = 40
_DOCUMENT_NAMES = frozenset({"oci-layout", "index.json", "manifest.json"})


@dataclass(slots=True)
class Contents:
    """What an archive has, by the names of its members.

    Attributes:
        documents: small JSON files.
        blobs: what went into the content store, with no media type.
        links: the member that a link stands for.
    """

    documents: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, Descriptor] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def resolve(self, name: str) -> str:
        """Follow links to the name of a file; an unknown name is returned as it is."""
        for _ in range(_MAX_LINKS):
            if name not in self.links:
                return name
            name = self.links[name]
        raise FormatError("image archive", 0, expected="a file", got=f"a circle of links at {name}")


def take_in(members: Iterator[Member], content: ContentStore, running: Operation) -> Contents:
    """Stream every blob into the store, under the operation's lease.

    Raises:
        DigestMismatch: a file below `blobs/` is not what its name says.
        ResourceExhausted: the disk is full, or the archive has too many members or documents.
    """
    found = Contents()
    for number, member in enumerate(members):
        running.cancel.check("import", member.name)
        if number >= MAX_MEMBERS:
            raise ResourceExhausted(f"import more than {MAX_MEMBERS} members of an archive")
        if member.target:
            found.links[member.name] = member.target
        elif (digest := _blob_digest(member.name)) is not None:
            blob = Descriptor(media_type="", digest=digest, size=member.size)
            found.blobs[member.name] = blob
            _take_blob(member, blob, content, running)
        elif _is_document(member):
            found.documents[member.name] = b"".join(member.chunks)
            if sum(map(len, found.documents.values())) > MAX_DOCUMENT_BYTES:
                raise ResourceExhausted(f"import {MAX_DOCUMENT_BYTES} bytes of JSON documents")
        else:
            found.blobs[member.name] = _take_file(member, number, content, running)
    return found


def _take_blob(member: Member, blob: Descriptor, content: ContentStore, running: Operation) -> None:
    """Store a member whose digest its name tells; one that is there already is passed over."""
    running.fetcher.hold([blob])
    content.require_space(member.size)
    try:
        writer = content.open_writer(f"import-{blob.digest}", expected=blob, cancel=running.cancel)
    except AlreadyExists:
        return
    with writer:
        writer.restart()
        try:
            for chunk in member.chunks:
                running.cancel.check("import", member.name)
                writer.write(chunk)
            writer.commit()
        except BaseException:
            writer.abort()
            raise


def _take_file(
    member: Member, number: int, content: ContentStore, running: Operation
) -> Descriptor:
    """Store a member of unknown digest."""
    content.require_space(member.size)
    with content.open_writer(f"import-{running.lease}-{number}", cancel=running.cancel) as writer:
        try:
            for chunk in member.chunks:
                running.cancel.check("import", member.name)
                writer.write(chunk)
            blob = Descriptor(media_type="", digest=writer.digest, size=writer.offset)
            running.fetcher.hold([blob])
            writer.commit()
        except BaseException:
            writer.abort()
            raise
    return blob


def _is_document(member: Member) -> bool:
    if member.size > MAX_CONFIG_BYTES:
        return False
    return member.name in _DOCUMENT_NAMES or member.name.endswith(".json")


def _blob_digest(name: str) -> Digest | None:
    parts = name.split("/")
    if len(parts) != 3 or parts[0] != "blobs":
        return None
    try:
        return parse_digest(f"{parts[1]}:{parts[2]}")
    except InvalidArgument:
        return None
