"""overlaybd images: an ext4 filesystem that grows from layer to layer, each layer its changed blocks."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from lamina.core.mount import Mount
from lamina.formats.lsmt.layout import About
from lamina.formats.lsmt.mappings import Extent
from lamina.formats.lsmt.writer import write_layer
from lamina.formats.zfile.envelope import wrapped
from lamina.formats.zfile.writer import ZFileOptions, ZFileWriter
from lamina.lazy.sources.file import FileSource
from lamina.mount import temp_mount
from lamina.snapshotters.overlaybd.labels import ACCELERATION, BLOB_DIGEST, BLOB_SIZE, FS_TYPE
from tests.images import ImageFiles, Layer, digest
from tests.nydus import Annotations, annotated_image

SIZE = 64 << 20
BLOCK = 4096
MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"
Change = Callable[[Path], None]


class Packing(NamedTuple):
    """How a layer is packed: as upstream's tools do it, or less of it."""

    zfile: ZFileOptions | None = ZFileOptions()
    tar: bool = True


PACKED = Packing()


def device_layers(
    directory: Path, changes: Sequence[Change], packing: Packing = PACKED
) -> list[bytes]:
    """Return the layers of a device to whose filesystem changes are made one after the other."""
    states = []
    for number, change in enumerate(changes):
        image = directory / f"device-{number}"
        if states:
            shutil.copy(states[-1], image)
        else:
            image.touch()
            with image.open("r+b") as file:
                file.truncate(SIZE)
            command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-b", "4096", str(image)]
            subprocess.run(command, check=True)
        with temp_mount([Mount("ext4", str(image), options=("rw", "loop"))], dir=directory) as root:
            change(root)
        states.append(image)
    layers = [_layer(None, states[0], packing)]
    layers += [_layer(old, new, packing) for old, new in pairwise(states)]
    for image in states:
        image.unlink()
    return layers


def _layer(old: Path | None, new: Path, packing: Packing) -> bytes:
    out = io.BytesIO()
    with closing(FileSource(new)) as source:
        with _tar(out, packing):
            about = About(SIZE)
            extents = _changed(old, new)
            if packing.zfile is None:
                write_layer(out, extents, [source], about)
            else:
                zfile = ZFileWriter(out, packing.zfile)
                write_layer(zfile, extents, [source], about)
                zfile.close()
    return out.getvalue()


@contextmanager
def _tar(out: io.BytesIO, packing: Packing) -> Iterator[None]:
    if packing.tar:
        with wrapped(out):
            yield
    else:
        yield


def _changed(old: Path | None, new: Path) -> Iterator[Extent]:
    before = old.read_bytes() if old else bytes(SIZE)
    after = new.read_bytes()
    for offset in range(0, SIZE, BLOCK):
        if before[offset : offset + BLOCK] != after[offset : offset + BLOCK]:
            yield Extent(offset, BLOCK, 0, offset)


def block_layer(blob: bytes, filesystem: str = "ext4") -> tuple[Layer, Annotations]:
    """Return a layer as a converted image has it."""
    annotations = {
        BLOB_DIGEST: digest(blob),
        BLOB_SIZE: str(len(blob)),
        FS_TYPE: filesystem,
        "containerd.io/snapshot/overlaybd/version": "0.1.0",
    }
    return Layer(blob, digest(blob), MEDIA_TYPE), annotations


def trace_layer(trace: bytes) -> tuple[Layer, Annotations]:
    layer = Layer.of({"trace": trace})
    return layer, {ACCELERATION: "yes", BLOB_DIGEST: layer.digest, BLOB_SIZE: str(len(layer.blob))}


def overlaybd_image(*blobs: bytes, filesystem: str = "ext4") -> ImageFiles:
    return annotated_image(*(block_layer(blob, filesystem) for blob in blobs))


def writing(files: dict[str, bytes]) -> Change:
    """Return what writes files."""

    def change(root: Path) -> None:
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)

    return change
