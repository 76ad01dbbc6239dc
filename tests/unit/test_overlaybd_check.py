"""overlaybd images that are sound, and that are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.digest import sha256
from lamina.errors import Cancelled, InvalidArgument
from lamina.formats.overlaybd.annotations import BLOB_DIGEST, BLOB_SIZE, PREFIX
from lamina.formats.overlaybd.trace import Access, layer_tar, write_trace
from lamina.formats.zfile.envelope import HEADER_SIZE
from lamina.images.acceleration import make_acceleration
from lamina.images.content import ContentStore
from lamina.images.manifest import OCI_LAYER, Descriptor
from lamina.images.overlaybd import device_layers
from lamina.images.overlaybd_check import verify_overlaybd
from lamina.images.registry.cancel import Cancel
from lamina.meta.database import Database
from lamina.meta.schema import MIGRATIONS
from tests.images import tar
from tests.overlaybd import EXT4, blob_of, manifest_of, put_layer
from tests.rafs import noise

DATA = noise(4096)
BASE = blob_of({0: EXT4, 8192: b"base", 12288: DATA})
ABOVE = blob_of({8192: b"above"})


@pytest.fixture
def content(tmp_path: Path) -> Iterator[ContentStore]:
    opened = Database(tmp_path / "metadata.sqlite", MIGRATIONS)
    yield ContentStore(tmp_path / "content", opened)
    opened.close()


def damage(content: ContentStore, layer: Descriptor, at: int) -> None:
    """Flip a bit of a blob."""
    path = content.path(layer.digest)
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_a_sound_image(content: ContentStore) -> None:
    base, above = put_layer(content, BASE), put_layer(content, ABOVE)
    trace = put_layer(content, make_acceleration([b"a"]).layer, acceleration_layer="yes")
    files = Descriptor(OCI_LAYER, sha256(b""), 0)
    image = manifest_of([base, above, trace, files])
    assert device_layers(image) == [base, above]
    for deep in (False, True):
        assert verify_overlaybd(content, image, deep=deep) == []


def test_a_flipped_bit_is_found_by_its_block(content: ContentStore) -> None:
    base, above = put_layer(content, BASE), put_layer(content, ABOVE)
    image = manifest_of([base, above])
    damage(content, base, BASE.index(DATA[:64]))
    assert verify_overlaybd(content, image, deep=False) == []
    digest, block = verify_overlaybd(content, image)
    assert f"layer {base.digest}: expected its digest, got sha256:" in digest
    assert f"layer {base.digest}: " in block
    assert "block 3 with CRC-32C" in block


@pytest.mark.parametrize(
    ("at", "said"),
    [
        # The header of the ZFile, and the trailer of the layer in it, which is its last block.
        (HEADER_SIZE + 80, "the digest"),
        (-1024 - 512 - 300, "with CRC-32C"),
    ],
)
def test_damage_that_reading_meets(content: ContentStore, at: int, said: str) -> None:
    base = put_layer(content, BASE)
    damage(content, base, at % len(BASE))
    [fault] = verify_overlaybd(content, manifest_of([base]), deep=False)
    assert f"layer {base.digest}: " in fault
    assert said in fault


def test_what_the_manifest_says_has_to_be_so(content: ContentStore) -> None:
    base = put_layer(content, BASE)
    for name, value in (("blob_digest", "sha256:0"), ("blob_size", "1")):
        wrong = put_layer(content, ABOVE, **{name: value})
        [fault] = verify_overlaybd(content, manifest_of([base, wrong]))
        assert f"layer {wrong.digest}: " in fault
        assert f"{PREFIX}{name.replace('_', '-')}" in fault
    assert {BLOB_DIGEST, BLOB_SIZE} == {PREFIX + "blob-digest", PREFIX + "blob-size"}


def test_what_is_no_layer(content: ContentStore) -> None:
    other = put_layer(content, tar({"a": b"a" * 9000}))
    [fault] = verify_overlaybd(content, manifest_of([other]))
    assert f"layer {other.digest}: " in fault
    trace = put_layer(content, tar({"other": b""}), acceleration_layer="yes")
    [fault] = verify_overlaybd(content, manifest_of([put_layer(content, BASE), trace]))
    assert f"layer {trace.digest}: " in fault
    assert "expected b'trace'" in fault
    damaged = layer_tar(write_trace([Access(0, 4096, 4096)])[:-1] + b"x")
    trace = put_layer(content, damaged, acceleration_layer="yes")
    [fault] = verify_overlaybd(content, manifest_of([put_layer(content, BASE), trace]))
    assert "the CRC-32C" in fault


def test_layers_that_make_no_device(content: ContentStore) -> None:
    base, above = put_layer(content, BASE), put_layer(content, ABOVE)
    files = Descriptor(OCI_LAYER, sha256(b""), 0)
    [fault] = verify_overlaybd(content, manifest_of([files, base]))
    assert fault == f"layer {files.digest}: it has files, below the device"
    [fault] = verify_overlaybd(content, manifest_of([above]))
    assert fault == "device: expected a filesystem of type ext4, got none"
    sizeless = put_layer(content, blob_of({0: EXT4}, 0))
    [fault] = verify_overlaybd(content, manifest_of([sizeless]))
    assert "a layer with the size of the device" in fault
    other = put_layer(content, blob_of({0: bytes(1024) + b"\xe2\xe1\xf5\xe0"}))
    assert verify_overlaybd(content, manifest_of([other])) == []
    unknown = put_layer(content, ABOVE, blob_fs_type="ntfs")
    assert verify_overlaybd(content, manifest_of([unknown])) == []


def test_what_is_not_for_it(content: ContentStore) -> None:
    files = Descriptor(OCI_LAYER, sha256(b""), 0)
    turbo = put_layer(content, BASE, **{"turbo_oci/target_digest": "sha256:0"})
    for layers in ([files], [turbo]):
        with pytest.raises(InvalidArgument, match="with its data in its layers"):
            verify_overlaybd(content, manifest_of(layers))
    cancel = Cancel()
    cancel.set()
    with pytest.raises(Cancelled):
        verify_overlaybd(content, manifest_of([put_layer(content, BASE)]), cancel=cancel)


def test_missing_blobs_are_told(content: ContentStore) -> None:
    base = put_layer(content, BASE)
    missing = Descriptor(OCI_LAYER, sha256(b"x"), 1, annotations=base.annotations)
    [fault] = verify_overlaybd(content, manifest_of([base, missing]))
    assert "content" in fault
    assert missing.digest in fault
