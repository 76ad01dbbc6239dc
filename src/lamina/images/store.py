"""What the images of one root consist of: content, records, leases, and one database."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Self

from lamina.images.catalogue import Catalogue, Image
from lamina.images.content import DIRECTORY, ContentStore
from lamina.images.manifest import Descriptor, Platform
from lamina.images.tree import PlatformImage, select
from lamina.meta.database import Database
from lamina.meta.leases import Leases
from lamina.meta.owners import Owners
from lamina.meta.schema import open_metadata

log = logging.getLogger(__name__)


class ImageStore:
    """The images of one root; several processes may have it open at once.

    Args:
        root: directory of everything; it must exist.
        database: its metadata, if open already; closed with the store.

    Attributes:
        database: `metadata.sqlite`, shared with the records of containers.
        locks: directory of the locks on layers being unpacked.
        temporary: directory of all processes' directories for temporary mounts.
    """

    def __init__(self, root: Path, database: Database | None = None) -> None:
        self.root = root
        self._has_mounts = False
        self.locks = root / "locks"
        self.temporary = root / "tmpmounts"
        for directory in (self.locks, self.temporary):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.database = database or open_metadata(root)
        self.owners = Owners(root / "owners")
        self.content = ContentStore(root / DIRECTORY, self.database)
        self.catalogue = Catalogue(self.database)
        self.leases = Leases(self.database, self.owners)

    @property
    def mounts(self) -> Path:
        """This object's own directory for temporary mounts."""
        path = self.temporary / self.owners.token
        path.mkdir(mode=0o700, exist_ok=True)
        self._has_mounts = True
        return path

    def read(self, descriptor: Descriptor) -> bytes:
        """Return a document of the content store, verified; a `tree.Reader`.

        Raises:
            NotFound: it is not there.
        """
        return self.content.read(descriptor.digest)

    def select(self, image: Image, platform: Platform) -> PlatformImage:
        """Return the image for a platform from local content.

        Raises:
            NotFound: no such platform, or its content is not there.
        """
        return select(image.target, platform, self.read)

    def close(self) -> None:
        """Close the database and stop owning leases; calling it again does nothing."""
        if self._has_mounts:
            self._remove_mounts()
        self.owners.close()
        self.database.close()

    def _remove_mounts(self) -> None:
        try:
            self.mounts.rmdir()
        except OSError as error:
            log.warning("temporary mounts stay: %s", error, extra={"path": str(self.mounts)})
        self._has_mounts = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
