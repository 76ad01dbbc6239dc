"""Images made to do harm, and registries that go wrong, met by the command itself.

Names that lead outside are taken inside the root, as containerd takes them; whatever else is wrong
is one line and an exit code, and nothing half made stays.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamina
from lamina.errors import Unavailable
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import CredentialStore
from lamina.images.registry.hosts import HostsConfig
from lamina.images.registry.retry import RetryPolicy
from tests.archives import Archive
from tests.faulty_registry import FaultyRegistry, cut, faulty_registry, html, send, stall, status
from tests.filesystems import mounted
from tests.fixtures_command import Command, workers
from tests.images import OCI_MANIFEST, ImageFiles, Layer, descriptor, digest, image, tar
from tests.roots import three_layers

pytestmark = [pytest.mark.root, pytest.mark.overlay]

SNAPSHOTTERS = ("overlayfs", "native")
BASE = Layer.of({"etc/": None, "etc/passwd": b"the image's users"})


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


def serve(faulty: FaultyRegistry, files: ImageFiles) -> str:
    for blob in files.blobs:
        faulty.add_blob(blob)
    faulty.add_manifest("1", files.manifest)
    return f"{faulty.host}/app:1"


def layer_of(archive: Archive) -> Layer:
    data = archive.data()
    return Layer(gzip.compress(data, 1), digest(data))


def layout(files: ImageFiles, **blobs: bytes) -> bytes:
    """Return an OCI layout as a tar file; `blobs` replace those of these names."""
    entry = descriptor(
        files.manifest, OCI_MANIFEST, annotations={"io.containerd.image.name": "hostile/app:1"}
    )
    stored = {digest(blob)[7:]: blob for blob in (files.manifest, *files.blobs)} | blobs
    return tar(
        {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
            **{f"blobs/sha256/{name}": blob for name, blob in stored.items()},
        }
    )


def refused_everywhere(
    command: Command, faulty: FaultyRegistry, files: ImageFiles, said: str, code: int
) -> None:
    """Neither snapshotter takes the image, from a registry or from an archive."""
    ref = serve(faulty, files)
    archive = command.root.parent / "archive.tar"
    archive.write_bytes(layout(files))
    for name in SNAPSHOTTERS:
        options = ["-q", "--plain-http", "--snapshotter", name]
        assert said in command.error("images", "pull", *options, ref, code=code)
        assert said in command.error("images", "import", "--snapshotter", name, archive, code=code)
    assert_refused(command)


def assert_refused(command: Command) -> None:
    """There is no image, and of the snapshots no more than the good layers below the bad one."""
    assert command.out("images", "ls", "-q") == ""
    for name in SNAPSHOTTERS:
        listed = command.json("snapshots", "--snapshotter", name, "ls", "--json")
        assert [snapshot["Name"] for snapshot in listed] in ([], [BASE.diff_id])
    assert command.out("fsck") == ""
    assert workers() == []
    assert list(command.root.glob("tmpmounts/*/*")) == []


def escaping() -> Archive:
    """Return an archive that tries to change `/outside` and to get at it."""
    return (
        Archive()
        .file("../../../../../../outside/up", "1")
        .file("/outside/absolute", "2")
        .symlink("link", "/outside")
        .file("link/through", "3")
        .symlink("relative", "../../../../../../../../outside")
        .file("relative/../outside/.wh.victim")
        .link("hard", "/outside/absolute")
        .symlink("etc", "/outside")
        .file("etc/passwd", "4")
    )


@pytest.mark.parametrize("name", SNAPSHOTTERS)
@pytest.mark.parametrize("source", ["registry", "archive"])
def test_names_that_lead_outside_end_inside(
    command: Command, faulty: FaultyRegistry, tmp_path: Path, name: str, source: str
) -> None:
    outside = Path("/outside")
    assert not outside.exists()
    files = image(BASE, layer_of(escaping()))
    ref = serve(faulty, files)
    outside.mkdir()
    try:
        (outside / "victim").write_text("untouched")
        if source == "registry":
            command.run("images", "pull", "--plain-http", "--snapshotter", name, ref)
        else:
            archive = tmp_path / "archive.tar"
            archive.write_bytes(layout(files))
            ref = command.out("images", "import", "--snapshotter", name, archive).strip()
        assert [path.name for path in outside.iterdir()] == ["victim"]
        assert (outside / "victim").read_text() == "untouched"
    finally:
        (outside / "victim").unlink()
        outside.rmdir()
    target = tmp_path / "target"
    target.mkdir()
    command.run("images", "mount", "--snapshotter", name, ref, target)
    try:
        # Overlay lists the whiteout of a name in a directory that no lower layer has.
        listed = [path for path in (target / "outside").iterdir() if path.exists()]
        found = {path.name: path.read_text() for path in listed}
        assert found == {"up": "1", "absolute": "2", "through": "3", "passwd": "4"}
        assert (target / "hard").samefile(target / "outside/absolute")
        assert os.readlink(target / "etc") == "/outside"
    finally:
        command.run("images", "unmount", "--rm", "--snapshotter", name, target)


@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (Archive().link("passwd", "/etc/shadow-of-the-host"), "link to something that exists"),
        (Archive().link("passwd", "../../../../etc/hostname"), "link to something that exists"),
        (Archive().file(".wh..."), "whiteout"),
        (Archive().file("etc/.wh.."), "whiteout"),
        (Archive().file("x" * 300), "255 bytes"),
        (
            Archive().file("a\x1b[2J\nlamina: x").file("a\x1b[2J\nlamina: x/b"),
            "through directories",
        ),
        (Archive().file("etc/passwd").file("etc/passwd/x"), "through directories"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_archives_that_are_refused(
    command: Command, faulty: FaultyRegistry, archive: Archive, said: str
) -> None:
    bad = layer_of(archive)
    ref = serve(faulty, image(BASE, bad))
    for name in SNAPSHOTTERS:
        options = ["-q", "--plain-http", "--snapshotter", name]
        line = command.error("images", "pull", *options, ref, code=13)
        assert line.startswith(f"lamina: unpack layer {bad.digest}: ")
        assert said in line
        assert "\x1b" not in line
    assert_refused(command)


def test_damaged_layers(command: Command, faulty: FaultyRegistry) -> None:
    good = Layer.of({"file": os.urandom(300_000)})
    truncated = Layer(good.blob[:-1000], good.diff_id)
    refused_everywhere(command, faulty, image(BASE, truncated), truncated.digest, 13)
    flipped = bytearray(good.blob)
    flipped[150_000] ^= 1
    corrupted = Layer(bytes(flipped), good.diff_id)
    refused_everywhere(command, faulty, image(BASE, corrupted), corrupted.digest, 13)
    text = Layer(b"this is no archive at all", good.diff_id)
    refused_everywhere(command, faulty, image(BASE, text), text.digest, 13)


def test_wrong_diff_ids(command: Command, faulty: FaultyRegistry) -> None:
    top = Layer.of({"file": b"x"})
    wrong = digest(b"something else")
    files = image(BASE, top, diff_ids=[BASE.diff_id, wrong])
    said = f"layer {top.digest}: expected {wrong}, got {top.diff_id}: digest mismatch"
    refused_everywhere(command, faulty, files, said, 7)
    files = image(BASE, top, diff_ids=[BASE.diff_id])
    refused_everywhere(command, faulty, files, "2 diff_ids, one for each layer", 13)


def test_wrong_digests(command: Command, faulty: FaultyRegistry, tmp_path: Path) -> None:
    top = Layer.of({"file": b"x"})
    files = image(BASE, top)
    ref = serve(faulty, files)
    other = bytes(len(top.blob))
    archive = tmp_path / "archive.tar"
    archive.write_bytes(layout(files, **{top.digest[7:]: other}))
    said = f"expected {top.digest}, got {digest(other)}: digest mismatch"
    for name in SNAPSHOTTERS:
        options = ["-q", "--plain-http", "--snapshotter", name]
        faulty.blobs[top.digest] = other
        assert said in command.error("images", "pull", *options, ref, code=7)
        assert said in command.error("images", "import", "--snapshotter", name, archive, code=7)
        assert top.digest not in command.out("content", "ls", "-q")
    assert_refused(command)
    faulty.add_blob(top.blob)
    faulty.fault("manifests", send(files.manifest + b" ", Content_Type=OCI_MANIFEST))
    pinned = f"{faulty.host}/app@{files.digest}"
    assert files.digest in command.error("images", "pull", "--plain-http", pinned, code=7)
    command.run("images", "pull", "-q", "--plain-http", ref)
    command.assert_sound(2)


@pytest.mark.parametrize("lie", [-1, 1, 1 << 62])
def test_lies_about_sizes(
    command: Command, faulty: FaultyRegistry, tmp_path: Path, lie: int
) -> None:
    top = Layer.of({"file": os.urandom(10_000)})
    files = image(BASE, top)
    size = len(top.blob)
    manifest = files.manifest.replace(b"%d" % size, b"%d" % (size + lie))
    serve(faulty, files)
    faulty.add_manifest("1", manifest)
    archive = tmp_path / "archive.tar"
    archive.write_bytes(layout(ImageFiles(manifest, files.config, files.layers)))
    for name in SNAPSHOTTERS:
        options = ["-q", "--plain-http", "--snapshotter", name]
        line = command.error(
            "images", "pull", *options, f"{faulty.host}/app:1", code=6 if lie > 1 else 13
        )
        assert ("download 4096.0 PiB" if lie > 1 else top.digest) in line
    for name in SNAPSHOTTERS:
        line = command.error("images", "import", "--snapshotter", name, archive, code=7)
        assert f"{top.digest}: size in bytes: expected {size + lie}, got {size}" in line
    assert_refused(command)


def test_a_gzip_bomb_of_10_gb(command: Command, faulty: FaultyRegistry, tmp_path: Path) -> None:
    """In pieces that are small each, so that no header gives it away."""
    piece = 100 << 20
    zeros = gzip.compress(bytes(piece), 9)
    headers = (Archive().file(f"zeros{i}", size=0).data()[:512] for i in range(100))
    sized = (_with_size(header, piece) for header in headers)
    bomb = b"".join(gzip.compress(header) + zeros for header in sized)
    assert len(bomb) < 12_000_000
    files = image(BASE, Layer(bomb, digest(b"never known")))
    ref = serve(faulty, files)
    archive = tmp_path / "archive.tar"
    archive.write_bytes(layout(files))
    limit = ["--max-layer-size", "250MiB"]
    for name in SNAPSHOTTERS:
        options = ["-q", "--plain-http", "--snapshotter", name]
        line = command.error("images", "pull", *options, *limit, ref, code=6)
        assert digest(bomb) in line
        command.error("images", "import", "--snapshotter", name, *limit, archive, code=6)
    assert_refused(command)
    command.run("images", "pull", "--max-layer-size", "lots", ref, code=2)


def _with_size(header: bytes, size: int) -> bytes:
    """Return a tar header for a file of that size, its checksum made right."""
    header = header[:124] + b"%011o\0" % size + header[136:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def test_a_registry_that_goes_wrong(command: Command, faulty: FaultyRegistry) -> None:
    files = three_layers()
    ref = serve(faulty, files)
    layer = files.layers[1].digest
    pull = ("images", "pull", "-q", "--plain-http", ref)
    for path in ("/manifests/1", layer):
        faulty.fault(path, html())
        assert "see whether a proxy" in command.error(*pull, code=12)
        faulty.fault(path, *[status(500, Retry_After="0")] * 6)
        assert "answered 500: unavailable; gave up after 6 tries" in command.error(*pull, code=12)
        faulty.fault(path, status(403))
        assert "answered 403" in command.error(*pull, code=5)
        faulty.fault(path, status(404))
        assert "not found" in command.error(*pull, code=3)
    assert command.out("images", "ls", "-q") == command.out("fsck") == ""
    faulty.fault(layer, cut(100_000), status(503, Retry_After="0"))
    command.run(*pull)
    command.assert_sound(3)
    ranges = [seen.headers.get("Range", "") for seen in faulty.seen if layer in seen.path]
    assert ranges[-1].startswith("bytes=100000-")


def test_nobody_listens(command: Command) -> None:
    said = command.error("images", "pull", "--plain-http", "127.0.0.1:1/app:1", code=12)
    assert "Connection refused" in said


def test_a_registry_that_stalls(root_dir: Path, faulty: FaultyRegistry) -> None:
    """As the command does, only less patient."""
    ref = serve(faulty, image(BASE, Layer.of({"file": os.urandom(200_000)})))
    hasty = RetryPolicy(attempts=2, first_delay=0.1, read_timeout=0.5)
    registry = Registry(HostsConfig(plain_http=True), CredentialStore(), retry=hasty)
    faulty.fault(f"/blobs/{json.loads(faulty.manifests['1'][0])['layers'][1]['digest']}",
                 stall(70_000), stall(10), stall(10))  # fmt: skip
    with lamina.open(root_dir) as store:
        with pytest.raises(Unavailable, match="timed out"):
            store.pull(ref, registry=registry)
        assert store.fsck() == []
        store.pull(ref, registry=registry)
        assert store.fsck() == []
    registry.close()


@pytest.mark.userns
@pytest.mark.parametrize("name", SNAPSHOTTERS)
def test_device_nodes_in_a_user_namespace(
    command: Command, faulty: FaultyRegistry, name: str
) -> None:
    """The kernel refuses to make them there; that is told, by name, and no device appears."""
    archive = (
        Archive()
        .file("before")
        .entry("dev\nnull", b"3", devmajor=1, devminor=3)
        .entry("disk", b"4", devmajor=8, devminor=0)
        .entry("fifo", b"6")
        .file("after")
    )
    ref = serve(faulty, image(layer_of(archive)))
    words = ("images", "pull", "-q", "--plain-http", "--snapshotter", name, ref)
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *command.argv(*words)],
        capture_output=True,
        check=False,
    )
    assert done.stderr.decode().splitlines() == [
        "lamina: warning: unpack layer: device dev\\nnull is left out in a user namespace",
        "lamina: warning: unpack layer: device disk is left out in a user namespace",
    ]
    assert done.returncode == 0
    [root] = [path.parent for path in command.root.glob("io.*/snapshots/**/before")]
    assert sorted(path.name for path in root.iterdir()) == ["after", "before", "fifo"]


@pytest.mark.loop
def test_full_disk_of_small_blocks_is_told(tmp_path: Path) -> None:
    with mounted(tmp_path, "mkfs.ext4", "-q", "-b", "1024") as disk:
        command = Command(disk / "root")
        command.run("snapshots", "prepare", "one")
        with open(disk / "rest", "wb") as rest:
            fill(rest.fileno())
        assert "free some space on its disk" in command.error("snapshots", "ls", code=6)
        (disk / "rest").unlink()
        assert "one" in command.out("snapshots", "ls")


def fill(fd: int) -> None:
    """Take all blocks of a file's disk that there are."""
    size, step = 0, 256 << 20
    while step >= 1024:
        try:
            os.posix_fallocate(fd, size, step)
            size += step
        except OSError:
            step //= 2
