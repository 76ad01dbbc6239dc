"""What the nydus snapshotter does without a mount: labels, contexts of gzip layers, its caches."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from lamina.core.labels import IMAGE_REF, LAYER_DIGEST, LAYER_SIZE
from lamina.errors import DataLoss, InvalidArgument, LaminaError, NotImplementedHere
from lamina.formats.rafs.annotations import BLOB, BOOTSTRAP, ENCRYPTED, FS_VERSION
from lamina.formats.rafs.zran import ZranContext
from lamina.lazy.layer import read_layer
from lamina.lazy.sources.description import RegistryDescription
from lamina.lazy.unit import Check, Codec, Piece, Unit
from lamina.snapshotters.lazy_access import Access, read_access
from lamina.snapshotters.nydus.blobs import NONE, BlobPlan, Blobs, read_devices, write_devices
from lamina.snapshotters.nydus.contexts import Contexts, write_contexts
from lamina.snapshotters.nydus.origin import origin_of, read_origin, require_servable
from tests.images import digest

DIGEST = digest(b"blob")
IMAGE = "registry.example/app:1"
STARGZ = "containerd.io/snapshot/remote/stargz."


def test_labels_of_both_kinds_of_clients(tmp_path: Path) -> None:
    found = origin_of({IMAGE_REF: IMAGE, LAYER_DIGEST: DIGEST, LAYER_SIZE: "5"})
    assert (found.reference, found.digest, found.size) == (IMAGE, DIGEST, 5)
    found.write(tmp_path / "note")
    assert read_origin(tmp_path / "note") == found
    assert read_origin(tmp_path / "none") is None
    (tmp_path / "note").write_text("{")
    with pytest.raises(DataLoss):
        read_origin(tmp_path / "note")
    found = origin_of({f"{STARGZ}reference": IMAGE, f"{STARGZ}digest": DIGEST})
    assert (found.reference, found.digest, found.size) == (IMAGE, DIGEST, 0)
    for labels in ({LAYER_SIZE: "-5"}, {LAYER_DIGEST: "md5:0"}):
        with pytest.raises(InvalidArgument):
            origin_of(labels)


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ({BOOTSTRAP: "", FS_VERSION: "7"}, NotImplementedHere),
        ({BOOTSTRAP: "", FS_VERSION: "5", ENCRYPTED: ""}, NotImplementedHere),
        ({BLOB: "", IMAGE_REF: IMAGE}, InvalidArgument),
        ({BLOB: "", LAYER_DIGEST: DIGEST}, InvalidArgument),
    ],
)
def test_layers_that_nobody_can_serve(labels: dict[str, str], error: type[LaminaError]) -> None:
    with pytest.raises(error):
        require_servable(labels)
    require_servable({BLOB: "", IMAGE_REF: IMAGE, LAYER_DIGEST: DIGEST})
    require_servable({BOOTSTRAP: "", FS_VERSION: "5"})


def test_contexts_of_a_gzip_layer(tmp_path: Path) -> None:
    parts = [b"first " * 3000, b"second " * 3000]
    packer = zlib.compressobj(9, wbits=31)
    border = packer.compress(parts[0]) + packer.flush(zlib.Z_SYNC_FLUSH)
    rest = packer.compress(parts[1]) + packer.flush()
    sizes = (len(border) - 10, 0, len(parts[0]))
    contexts = [
        ZranContext(len(border), len(rest), len(parts[0]), len(parts[1]), parts[0][-5000:], 0, 0),
        ZranContext(10, *sizes, b"", 0, 0),
    ]
    write_contexts(tmp_path / "contexts", contexts)
    found = Contexts(tmp_path / "contexts")

    def unit(place: int, codec: Codec) -> Unit:
        return Unit(place, 1, 0, 1, codec, [])

    assert found.decode(unit(10, Codec.ZRAN), border[10:], 100) == parts[0][:100]
    assert found.decode(unit(len(border), Codec.ZRAN), rest, len(parts[1])) == parts[1]
    assert found.decode(unit(11, Codec.NONE), b"plain", 5) == b"plain"
    for place, length in ((11, 1), (10, len(parts[0]) + 1)):
        with pytest.raises(DataLoss):
            found.decode(unit(place, Codec.ZRAN), border[10:], length)
    (tmp_path / "contexts").write_bytes(b"\xff" * 20)
    with pytest.raises(DataLoss):
        Contexts(tmp_path / "contexts")


def test_caches_are_shared_within_a_repository_and_removed_with_the_last(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)

    def made(reference: str, size: int = 5, *, count: int = 2) -> str:
        units = [
            Unit(10 * n, 5, 4096 * n, size, Codec.ZSTD, [Piece(0, size, 4096 * n, *check)])
            for n in range(count)
        ]
        source = RegistryDescription(reference, DIGEST, 100)
        plan = BlobPlan(DIGEST[7:], source, 3 * 4096, units, ())
        return blobs.make(plan, Access("certs"), "fuse")

    check = (Check.SHA256, bytes(32))
    let_go: list[Path] = []
    with blobs.locked():
        name = made(IMAGE)
        assert made("registry.example/app:2") == made(f"registry.example/app@{DIGEST}") == name
        assert made(IMAGE, count=1) == name
        others = {made("registry.example/other:1"), made("example:5000/app:1"), made(IMAGE, 6)}
        others.add(made(IMAGE, count=3))
        assert len(others - {name}) == 4
        blobs.empty_device()
        assert read_layer(blobs.cache(name)).gate == "fuse"
        assert read_access(blobs.cache(name).parent).hosts == "certs"
        blobs.sweep([name], let_go.append)
        assert {path.parent.name for path in let_go} == others
        assert {path.name for path in blobs.path.iterdir()} == {NONE, name}
    write_devices(tmp_path, [name, NONE])
    assert read_devices(tmp_path) == (name, NONE)
    write_devices(tmp_path, ["../elsewhere"])
    with pytest.raises(DataLoss):
        read_devices(tmp_path)
