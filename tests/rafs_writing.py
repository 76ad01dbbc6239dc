"""RAFS images written of layers, with their blobs in memory."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.digests import digest_of
from lamina.formats.rafs.model import Bootstrap
from lamina.formats.rafs.units import lay_out_v5, lay_out_v6
from lamina.formats.rafs.writer.bootstrap import write_bootstrap
from lamina.formats.rafs.writer.chunks import ChunkPool
from lamina.formats.rafs.writer.layer import write_layer
from lamina.formats.rafs.writer.layer_files import WrittenLayer
from lamina.formats.rafs.writer.merge import MergedTree
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.formats.rafs.writer.tables import make_tables
from tests.erofs import Bytes
from tests.rafs_devices import filled

NOTHING: Mapping[int, Sequence[bytes]] = {}


class Written(NamedTuple):
    """An image: its bootstrap, its blobs in the order of the blob table, and its layers."""

    raw: bytes
    blobs: list[bytes]
    layers: list[WrittenLayer]

    @property
    def bootstrap(self) -> Bootstrap:
        return read_bootstrap(Bytes(self.raw))

    def devices(self) -> list[bytes]:
        """Return what fills the devices, every chunk decompressed and verified."""
        bootstrap = self.bootstrap
        lay_out = lay_out_v6 if bootstrap.version == 6 else lay_out_v5
        return filled(lay_out(bootstrap), bootstrap, dict(enumerate(self.blobs)))


def written(
    *tars: bytes,
    options: RafsOptions,
    prioritized: Mapping[int, Sequence[bytes]] = NOTHING,
    pool: ChunkPool | None = None,
    threads: int = 2,
) -> Written:
    """Write an image; `prioritized` is by number of the layer."""
    pool = pool or ChunkPool()
    tree = MergedTree()
    layers, blobs = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, tar in enumerate(tars):
            out = io.BytesIO()
            layer = write_layer(
                [tar],
                out.write,
                temporary=Path(temporary),
                pool=pool,
                options=options,
                lower=tree.directory if number else None,
                prioritized=prioritized.get(number, ()),
                threads=threads,
            )
            tree.add(layer)
            layers.append(layer)
            if layer.blob is not None:
                blobs[layer.blob.id] = out.getvalue()
    assert tree.root is not None
    tables = make_tables(tree.root, pool.blobs)
    image = io.BytesIO()
    wanted = [inode for layer in layers for inode in layer.prioritized]
    write_bootstrap(tree.root, tables, image, options, wanted)
    return Written(image.getvalue(), [blobs.get(blob.id, b"") for blob in tables.blobs], layers)


def digests(options: RafsOptions, data: bytes) -> list[bytes]:
    """Return those of a file's chunks."""
    step = options.chunk_size
    return [digest_of(options.digester, data[at : at + step]) for at in range(0, len(data), step)]
