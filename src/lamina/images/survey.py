"""What the images of a root consist of, told from their documents and not from labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from lamina.core.digest import Digest
from lamina.core.labels import GC_REF_SNAPSHOT
from lamina.errors import LaminaError
from lamina.images.manifest import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Platform,
    check_blob,
)
from lamina.images.platform import normalize
from lamina.images.remover import blob_path
from lamina.images.store import ImageStore
from lamina.images.tree import Reader, child_labels, children, images, read_document, read_image


@dataclass(slots=True)
class Survey:
    """What was found.

    Attributes:
        users: names of the images that have a blob.
        labels: by which each of these blobs keeps others; none for a layer.
        chains: for each chain id: an image that has the layer, its platform, and whether all of
            that image's content is here.
    """

    users: dict[Digest, list[str]] = field(default_factory=dict)
    labels: dict[Digest, Mapping[str, str]] = field(default_factory=dict)
    chains: dict[str, tuple[str, Platform, bool]] = field(default_factory=dict)

    def remedy(self, digest: Digest) -> str:
        """Return the command that gets a blob again; "" where no image has it.

        A pull that unpacks passes over what is unpacked already.
        """
        names = self.users.get(digest)
        return f"get it again: lamina images pull --no-unpack {names[0]}" if names else ""


def survey(store: ImageStore, snapshotters: Iterable[str]) -> Survey:
    """Look through all images, as far as their documents can be read; records are not asked.

    Args:
        store: has them.
        snapshotters: those in which an image may be unpacked.
    """
    return _Surveyor(store, tuple(snapshotters)).run()


class _Surveyor:
    def __init__(self, store: ImageStore, snapshotters: tuple[str, ...]) -> None:
        self._store = store
        self._snapshotters = snapshotters
        self._found = Survey()

    def run(self) -> Survey:
        for image in self._store.catalogue.walk():
            self._walk(image.name, image.target)
            for member in _members(image.target, self._read):
                self._chain(image.name, member)
        return self._found

    def _read(self, descriptor: Descriptor) -> bytes:
        """Return a document from its file, whether there is a record of it or not."""
        try:
            data = blob_path(self._store.content.root, descriptor.digest).read_bytes()
        except OSError as error:
            raise LaminaError("read", descriptor.digest) from error
        check_blob(data, descriptor)
        return data

    def _walk(self, name: str, target: Descriptor) -> None:
        pending = [target]
        while pending:
            descriptor = pending.pop()
            users = self._found.users.setdefault(descriptor.digest, [])
            if name in users:
                continue
            users.append(name)
            try:
                self._found.labels.setdefault(descriptor.digest, self._labels(descriptor))
                pending += children(descriptor, self._read)
            except LaminaError:
                continue  # it is not here, or damaged

    def _labels(self, descriptor: Descriptor) -> Mapping[str, str]:
        if descriptor.media_type in INDEX_TYPES | MANIFEST_TYPES:
            return child_labels(read_document(descriptor, self._read))
        return {}

    def _chain(self, name: str, member: Descriptor) -> None:
        try:
            image = read_image(member, self._read)
        except LaminaError:
            return
        config = image.manifest.config
        if config.media_type in CONFIG_TYPES and image.chain_id:
            self._found.labels[config.digest] = {
                f"{GC_REF_SNAPSHOT}.{snapshotter}": image.chain_id
                for snapshotter in self._snapshotters
            }
        blobs = (member, config, *image.manifest.layers)
        whole = all(self._is_here(blob) for blob in blobs)
        for chain_id in image.chain:
            known = self._found.chains.get(chain_id)
            if known is None or (whole and not known[2]):
                self._found.chains[chain_id] = (name, normalize(image.config.platform), whole)

    def _is_here(self, blob: Descriptor) -> bool:
        try:
            return blob_path(self._store.content.root, blob.digest).stat().st_size == blob.size
        except OSError:
            return False


def _members(target: Descriptor, read: Reader) -> Iterator[Descriptor]:
    try:
        yield from images(target, read)
    except LaminaError:
        return
