"""overlaybd images: an ext4 filesystem that grows; each layer has the blocks that it changed."""

from __future__ import annotations

import gzip
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
from lamina.formats.lsmt.warp import OWN, REMOTE, write_warp
from lamina.formats.lsmt.writer import write_layer
from lamina.formats.overlaybd.annotations import (
    ACCELERATION,
    BLOB_DIGEST,
    BLOB_SIZE,
    FS_TYPE,
    NATIVE_VERSION,
    TARGET_DIGEST,
    TARGET_MEDIA_TYPE,
    VERSION,
)
from lamina.formats.zfile.envelope import wrapped
from lamina.formats.zfile.writer import ZFileOptions, ZFileWriter
from lamina.lazy.sources.file import FileSource
from lamina.mount import temp_mount
from tests.erofs import Bytes
from tests.gzip_index import make_index
from tests.images import OCI_LAYER, OCI_LAYER_GZIP, ImageFiles, Layer, digest, tar
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
    states = device_images(directory, changes)
    layers = [_layer(None, states[0], packing)]
    layers += [_layer(old, new, packing) for old, new in pairwise(states)]
    for image in states:
        image.unlink()
    return layers


def device_images(directory: Path, changes: Sequence[Change]) -> list[Path]:
    """Return images of a device after each change."""
    states: list[Path] = []
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
    return states


def _layer(old: Path | None, new: Path, packing: Packing) -> bytes:
    out = io.BytesIO()
    with closing(FileSource(new)) as source, _tar(out, packing):
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
        VERSION: NATIVE_VERSION,
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


def turbo_layer(
    directory: Path, files: dict[str, bytes], *, compress: bool
) -> tuple[tuple[Layer, Annotations], bytes]:
    """Return a TurboOCI layer, and the original layer that has its data."""
    archive = tar(files)
    [device] = device_images(directory, [writing(files)])
    image = device.read_bytes()
    device.unlink()
    places = dict(_shared(image, archive, files))
    extents = [
        Extent(at, BLOCK, REMOTE, places[at]) if at in places else Extent(at, BLOCK, OWN, at)
        for at in range(0, SIZE, BLOCK)
        if any(image[at : at + BLOCK])
    ]
    meta, warp = io.BytesIO(), io.BytesIO()
    write_warp(warp, extents, Bytes(image), About(SIZE))
    zfile = ZFileWriter(meta)
    zfile.write(warp.getvalue())
    zfile.close()
    members: dict[str, bytes | None] = {".turbo.ociv1": b"", "ext4.fs.meta": meta.getvalue()}
    original = gzip.compress(archive, mtime=0) if compress else archive
    if compress:
        members["gzip.meta"] = make_index(original, len(archive))
    layer = Layer.of(members)
    annotations = {
        BLOB_DIGEST: layer.digest,
        BLOB_SIZE: str(len(layer.blob)),
        VERSION: "0.1.0-turbo.ociv1",
        TARGET_DIGEST: digest(original),
        TARGET_MEDIA_TYPE: OCI_LAYER_GZIP if compress else OCI_LAYER,
    }
    return (layer, annotations), original


def _shared(image: bytes, archive: bytes, files: dict[str, bytes]) -> Iterator[tuple[int, int]]:
    """Yield which whole blocks of a device are somewhere in an archive."""
    for data in files.values():
        for start in range(0, len(data) - BLOCK + 1, BLOCK):
            block = data[start : start + BLOCK]
            at = image.find(block)
            if at >= 0 and not at % BLOCK:
                yield at, archive.index(block)
