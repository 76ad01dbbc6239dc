"""Importing and exporting images."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lamina.core.driver import Ability
from lamina.errors import DataLoss, DigestMismatch, FormatError, LaminaError, NotFound
from lamina.formats.compression import Compression, compressor
from lamina.images.archive.exporting import ExportOptions, export_images
from lamina.images.archive.importing import ImportOptions, Names, import_images
from lamina.images.catalogue import Image
from lamina.images.extraction import Destination
from lamina.images.gc import collect
from lamina.images.manifest import DOCKER_LAYER_GZIP
from lamina.images.platform import default_platform
from lamina.images.store import ImageStore
from lamina.images.tree import read_image
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.overlayfs.driver import OverlayDriver
from tests.images import OCI_INDEX, OCI_MANIFEST, ImageFiles, Layer, descriptor, image, index

pytestmark = [pytest.mark.root, pytest.mark.overlay]

NAME = "docker.io/library/one:1"


class Archives:
    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700)
        self.store = ImageStore(root)
        directory = root / "io.containerd.snapshotter.v1.overlayfs"
        directory.mkdir(mode=0o700)
        driver = OverlayDriver(directory)
        self.engine = Engine("overlayfs", driver, directory, sync_remove=True)
        self.destination = Destination("overlayfs", self.engine, Ability.REBASE in driver.abilities)

    def load(self, source: Path | bytes, *, unpack: bool = True, **options: object) -> list[Image]:
        return import_images(
            io.BytesIO(source) if isinstance(source, bytes) else source,
            store=self.store,
            destination=self.destination if unpack else None,
            options=ImportOptions(**options),  # type: ignore[arg-type]  # the tests' own
            collect=lambda: collect(self.store, {"overlayfs": self.engine}),
        )

    def save(self, *names: str, **options: object) -> bytes:
        out = io.BytesIO()
        images = [self.store.catalogue.get(name) for name in names]
        chosen = ExportOptions(**options)  # type: ignore[arg-type]  # the tests' own
        export_images(images, out, store=self.store, options=chosen)
        return out.getvalue()

    def assert_empty(self) -> None:
        """Nothing was imported, and a collection leaves nothing."""
        assert list(self.store.catalogue.walk()) == []
        for lease in self.store.leases.all():
            self.store.leases.delete(lease.id)
        collect(self.store, {"overlayfs": self.engine})
        assert list(self.store.content.walk()) == []
        assert list((self.store.content.root / "blobs/sha256").iterdir()) == []
        assert self.store.content.ingests() == []
        assert list(self.engine.walk()) == []


@pytest.fixture
def archives(root_dir: Path) -> Iterator[Archives]:
    opened = Archives(root_dir)
    yield opened
    opened.engine.close()
    opened.store.close()


def pack(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def blob_path(data: bytes) -> str:
    return "blobs/sha256/" + hashlib.sha256(data).hexdigest()


def layout(
    *images: ImageFiles, annotations: Mapping[str, str], top: bytes = b""
) -> dict[str, bytes]:
    """Return the members of an OCI layout; `top` is an index to be named instead of the images."""
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    for each in images:
        files |= {blob_path(data): data for data in (each.manifest, *each.blobs)}
    named = [descriptor(i.manifest, OCI_MANIFEST, annotations=dict(annotations)) for i in images]
    if top:
        files[blob_path(top)] = top
        named = [descriptor(top, OCI_INDEX, annotations=dict(annotations))]
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": named}).encode()
    return files


def docker_archive(files: ImageFiles, tags: list[str] | None) -> dict[str, bytes]:
    """Return the members that `docker save` of old wrote, layers plain."""
    config_name = hashlib.sha256(files.config).hexdigest() + ".json"
    layers = {f"{n}/layer.tar": gzip.decompress(x.blob) for n, x in enumerate(files.layers)}
    saved = [{"Config": config_name, "RepoTags": tags, "Layers": list(layers)}]
    return {
        **layers,
        config_name: files.config,
        "repositories": b"{}",
        "manifest.json": json.dumps(saved).encode(),
    }


TWO = image(Layer.of({"a": b"a"}), Layer.of({"b": b"b"}))
NAMED = {"io.containerd.image.name": NAME}


@pytest.mark.parametrize("form", ["plain", "gzip", "zstd", "directory"])
def test_import_of_a_layout(archives: Archives, tmp_path: Path, form: str) -> None:
    members = layout(TWO, annotations=NAMED)
    source: Path | bytes = pack(members)
    if form == "directory":
        source = tmp_path / "layout"
        for name, data in members.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
    elif form == "gzip":
        source = gzip.compress(pack(members))
    elif form == "zstd":
        stream = compressor(Compression.ZSTD)
        source = stream.compress(pack(members)) + stream.flush()
    [found] = archives.load(source)
    assert (found.name, found.target.digest) == (NAME, TWO.digest)
    assert len(list(archives.engine.walk())) == 2
    assert archives.store.content.ingests() == []
    assert archives.store.leases.all() == []


@pytest.mark.parametrize("compress", [False, True])
def test_import_of_a_docker_archive(archives: Archives, compress: bool) -> None:
    tags = ["one:1", "example.com/two:2"]
    found = archives.load(pack(docker_archive(TWO, tags)), compress=compress)
    assert [i.name for i in found] == [NAME, "example.com/two:2"]
    unpacked = archives.store.select(found[0], default_platform())
    assert [str(d) for d in unpacked.config.rootfs.diff_ids] == TWO.diff_ids
    types = {layer.media_type for layer in unpacked.manifest.layers}
    assert (types == {DOCKER_LAYER_GZIP}) is compress
    known = {info.digest for info in archives.store.content.walk()}
    used = {unpacked.descriptor.digest, unpacked.manifest.config.digest}
    assert known == used | {layer.digest for layer in unpacked.manifest.layers}


@pytest.mark.parametrize(
    ("annotations", "names", "expected"),
    [
        ({"org.opencontainers.image.ref.name": "v1"}, Names(base="ex.io/a"), ["ex.io/a:v1"]),
        ({"org.opencontainers.image.ref.name": "ex.io/b:v1"}, Names(), ["ex.io/b:v1"]),
        ({"org.opencontainers.image.ref.name": "ex.io/ab:v1"}, Names(base="ex.io/a"), []),
        (NAMED, Names(base="docker.io/library/one"), [NAME]),
        ({}, Names(base="ex.io/a", digests=True), [f"ex.io/a@{TWO.digest}"]),
        (NAMED, Names(digests=True, skip_digest_for_named=True), [NAME]),
    ],
)
def test_names(
    archives: Archives, annotations: dict[str, str], names: Names, expected: list[str]
) -> None:
    source = pack(layout(TWO, annotations=annotations))
    if not expected:
        with pytest.raises(NotFound, match="--base-name"):
            archives.load(source, names=names)
        archives.assert_empty()
        return
    found = archives.load(source, names=names, unpack=False)
    assert [i.name for i in found] == expected


def test_index_name(archives: Archives) -> None:
    found = archives.load(pack(layout(TWO, annotations={})), names=Names(index="ex.io/all:1"))
    assert [(i.name, i.target.media_type) for i in found] == [("ex.io/all:1", OCI_INDEX)]
    assert len(list(archives.engine.walk())) == 2


def test_export_round_trip(archives: Archives, tmp_path: Path) -> None:
    archives.load(pack(layout(TWO, annotations=NAMED)))
    archives.store.catalogue.tag(NAME, "docker.io/library/two:2")
    data = archives.save(NAME, "docker.io/library/two:2")
    assert data == archives.save("docker.io/library/two:2", NAME)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert {m.mtime for m in archive.getmembers()} == {0}
        [saved] = json.load(archive.extractfile("manifest.json") or io.BytesIO())
    assert saved["RepoTags"] == ["one:1", "two:2"]
    for name in (NAME, "docker.io/library/two:2"):
        archives.store.catalogue.delete(name)
    archives.assert_empty()
    assert len(archives.load(data)) == 2
    assert len(list(archives.engine.walk())) == 2
    assert archives.save(NAME, "docker.io/library/two:2") == data


def test_export_of_one_platform(archives: Archives) -> None:
    foreign = image(Layer.of({"x": b"x"}), architecture="s390x")
    top = index(TWO, foreign)
    archives.load(pack(layout(TWO, foreign, annotations=NAMED, top=top)))
    with tarfile.open(fileobj=io.BytesIO(archives.save(NAME))) as archive:
        names = set(archive.getnames())
    assert blob_path(TWO.manifest) in names
    assert blob_path(foreign.manifest) not in names
    with tarfile.open(fileobj=io.BytesIO(archives.save(NAME, all_platforms=True))) as archive:
        assert blob_path(foreign.config) in archive.getnames()


def test_export_of_damaged_content(archives: Archives) -> None:
    archives.load(pack(layout(TWO, annotations=NAMED)))
    blob = TWO.layers[0].blob
    path = archives.store.content.root / blob_path(blob)
    path.chmod(0o600)
    path.write_bytes(bytes(len(blob)))
    with pytest.raises(DataLoss, match="damaged"):
        archives.save(NAME)
    path.unlink()
    with pytest.raises(NotFound, match=hashlib.sha256(blob).hexdigest()):
        archives.save(NAME)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_skopeo_reads_what_is_exported(archives: Archives, tmp_path: Path, transport: str) -> None:
    archives.load(pack(layout(TWO, annotations=NAMED)))
    exported = tmp_path / "exported.tar"
    exported.write_bytes(archives.save(NAME))
    name = "1" if transport == "oci-archive" else "one:1"
    copy = tmp_path / "copy.tar"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", f"{transport}:{exported}:{name}",
         f"docker-archive:{copy}:copied:3"],
        check=True, capture_output=True,
    )  # fmt: skip
    [found] = archives.load(copy)
    assert found.name == "docker.io/library/copied:3"
    unpacked = read_image(found.target, archives.store.read)
    assert [str(d) for d in unpacked.config.rootfs.diff_ids] == TWO.diff_ids


def broken(**changes: bytes) -> bytes:
    return pack({**layout(TWO, annotations=NAMED), **changes})


LOST = TWO.layers[1].blob
WITHOUT_LAYER = {k: v for k, v in layout(TWO, annotations=NAMED).items() if k != blob_path(LOST)}
ESCAPE = b'[{"Config":"../../../etc/passwd","Layers":[]}]'
HOSTILE: dict[str, tuple[bytes, type[LaminaError], str]] = {
    "wrong digest": (broken(**{blob_path(TWO.config): b"other"}), DigestMismatch, "expected"),
    "no kind of archive": (pack({"hello": b"x"}), FormatError, "neither"),
    "cut off": (pack(layout(TWO, annotations=NAMED))[:3000], FormatError, "tar"),
    "no tar": (b"\x80" * 2000, FormatError, "tar"),
    "index is junk": (broken(**{"index.json": b"[1]"}), FormatError, "a JSON object"),
    "missing layer": (pack(WITHOUT_LAYER), NotFound, hashlib.sha256(LOST).hexdigest()),
    "docker names a path": (pack({"manifest.json": ESCAPE}), FormatError, "a file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives(archives: Archives, case: str) -> None:
    source, kind, text = HOSTILE[case]
    with pytest.raises(kind, match=text):
        archives.load(source)
    archives.assert_empty()


@pytest.mark.parametrize("content", [b"no archive at all\n" * 100, b"", pack({"hello": b"x"})])
def test_the_file_that_is_no_archive_is_named(
    archives: Archives, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=re.escape(f'in "{file}" at byte')):
        archives.load(file)


def test_paths_and_links_lead_nowhere(archives: Archives, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"rootfs":{"diff_ids":[]}}')
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("config.json")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
        evil = tarfile.TarInfo(f"..{tmp_path}/written")
        evil.size = 4
        archive.addfile(evil, io.BytesIO(b"evil"))
        for name, target in (("x", "y"), ("y", "x")):
            loop = tarfile.TarInfo(name)
            loop.type, loop.linkname = tarfile.SYMTYPE, target
            archive.addfile(loop)
        saved = b'[{"Config":"config.json","RepoTags":["a:1"],"Layers":[]}]'
        info = tarfile.TarInfo("manifest.json")
        info.size = len(saved)
        archive.addfile(info, io.BytesIO(saved))
    with pytest.raises(FormatError, match=r"a file config.json"):
        archives.load(out.getvalue())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root", "secret.json"]
    archives.assert_empty()
