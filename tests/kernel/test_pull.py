"""Pulling from a real registry into real snapshotters."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lamina.core.digest import Digest
from lamina.core.driver import Claimed, Refused, Snapshot
from lamina.core.labels import (
    IMAGE_LAYERS,
    IMAGE_REF,
    LAYER_DIGEST,
    LAYER_SIZE,
    MANIFEST_DIGEST,
    REMOTE,
)
from lamina.core.snapshot import Kind
from lamina.errors import Cancelled, DataLoss, DigestMismatch, FormatError, LaminaError, NotFound
from lamina.images.operation import Options
from lamina.images.platform import parse_platform
from lamina.images.progress import Event, Stage
from lamina.images.pull import unpack
from lamina.images.registry.cancel import Cancel
from lamina.mount import temp_mount
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.native.driver import NativeDriver
from lamina.store import Store
from tests import hard_image
from tests.archives import Archive
from tests.fixtures_registry import LocalRegistry
from tests.hard_image import chain, load_image, names, tree
from tests.images import OCI_INDEX, ImageFiles, Layer, image, index
from tests.roots import SMALL, SNAPSHOTTERS, Root, small_files, three_layers

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.registry]
EROFS = pytest.mark.erofs


@pytest.fixture
def open_root(root_dir: Path) -> Iterator[Callable[..., Root]]:
    opened: list[Root] = []

    def make(boot: str = "") -> Root:
        opened.append(Root(root_dir, boot=boot))
        return opened[-1]

    yield make
    for root in opened:
        root.close()


@pytest.fixture
def root(open_root: Callable[..., Root]) -> Root:
    return open_root()


def push(registry: LocalRegistry, files: ImageFiles, name: str = "test", tag: str = "1") -> str:
    registry.push(files.manifest, files.blobs, name, tag)
    return f"{registry.host}/{name}:{tag}"


@pytest.mark.parametrize("name", ["overlayfs", "native", pytest.param("erofs", marks=EROFS)])
def test_directory_that_no_entry_describes_looks_as_below(root_dir: Path, name: str) -> None:
    """Also where all layers are unpacked at once, and what is below is not there yet."""
    base = Archive().dir("tmp", 0o1777, uid=3, gid=4).dir("home").dir("home/user", 0o700, uid=1000)
    above = [Archive().file("tmp/a", b"a").file("home/user/a", b"a"), Archive().file("tmp/b", b"b")]
    root_dir.mkdir(mode=0o711)
    with Store(root_dir) as store:
        load_image(store, name, *map(hard_image.layer, (base, *above)))
        found = tree(store, name, chain(store)[-1])
        assert names(store, name) == set(chain(store))
    assert (found["tmp"].mode, found["tmp"].owner) == ("drwxrwxrwt", (3, 4))
    assert (found["home/user"].mode, found["home/user"].owner) == ("drwx------", (1000, 0))
    assert {"tmp/a", "tmp/b", "home/user/a"} <= found.keys()


@pytest.mark.parametrize("name", SNAPSHOTTERS)
def test_pull_unpacks_every_layer(root: Root, registry: LocalRegistry, name: str) -> None:
    files = three_layers()
    pulled = root.pull(push(registry, files), name)
    assert pulled.image.target.digest == files.digest
    assert small_files(root.files(pulled, name)) == SMALL
    assert pulled.timings.downloaded == sum(map(len, files.blobs))
    assert pulled.timings.bottleneck in {"download", "unpack"}
    root.assert_clean(name, 3)
    chain = pulled.unpacked[0].chain
    config = root.store.content.info(pulled.unpacked[0].manifest.config.digest)
    assert config.labels[f"containerd.io/gc.ref.snapshot.{name}"] == chain[-1]
    manifest = root.store.content.info(Digest(files.digest))
    assert manifest.labels["containerd.io/gc.ref.content.config"] == config.digest
    layer = root.store.content.info(pulled.unpacked[0].manifest.layers[2].digest)
    assert layer.labels["containerd.io/uncompressed"] == files.diff_ids[2]
    assert layer.labels[f"containerd.io/distribution.source.{registry.host}"] == "test"
    top = root.engines[name].stat(chain[2])
    assert top.parent == chain[1]
    assert top.labels == {
        "containerd.io/snapshot.ref": chain[2],
        "containerd.io/snapshot/diff-id": files.diff_ids[2],
        "containerd.io/snapshot/parent-chain-id": chain[1],
    }


@pytest.mark.parametrize("name", SNAPSHOTTERS)
def test_second_pull_does_nothing(root: Root, registry: LocalRegistry, name: str) -> None:
    ref = push(registry, three_layers())
    root.pull(ref, name)
    root.events.clear()
    again = root.pull(ref, name)
    assert again.timings.downloaded == 0
    assert {event.stage for event in root.events} == {Stage.EXISTS}


def test_other_snapshotter_unpacks_local_content(root: Root, registry: LocalRegistry) -> None:
    pulled = root.pull(push(registry, three_layers()), "overlayfs")
    unpack(pulled.image, store=root.store, destination=root.destination("native"))
    assert small_files(root.files(pulled, "native")) == SMALL
    root.assert_clean("native", 3)


def test_pull_fetches_only_what_is_gone(root: Root, registry: LocalRegistry) -> None:
    files = three_layers()
    ref = push(registry, files)
    pulled = root.pull(ref, "overlayfs")
    lost = pulled.unpacked[0].manifest.layers[1]
    root.store.content.path(lost.digest).unlink()
    with pytest.raises(NotFound, match=lost.digest):
        unpack(pulled.image, store=root.store, destination=root.destination("native"))
    assert root.pull(ref, "native").timings.downloaded == lost.size
    assert small_files(root.files(pulled, "native")) == SMALL


@pytest.mark.parametrize("name", SNAPSHOTTERS)
def test_pull_restores_layers_that_power_loss_took(
    open_root: Callable[..., Root], registry: LocalRegistry, tmp_path: Path, name: str
) -> None:
    ref = push(registry, three_layers())
    root = open_root(boot="one")
    chain = root.pull(ref, name).unpacked[0].chain
    with temp_mount(root.engines[name].prepare("mine", chain[2]), dir=tmp_path) as path:
        (path / "etc/mine").write_text("kept")
    root.close()
    for layer in root.engines[name].root.glob("snapshots/[123]"):
        shutil.rmtree(layer)
        layer.mkdir()  # what was not yet on disk

    root = open_root(boot="two")
    engine = root.engines[name]
    with pytest.raises(DataLoss, match="pull its image again to restore it"):
        engine.view("look", chain[2])
    pulled = root.pull(ref, name)
    assert pulled.timings.downloaded == 0
    assert small_files(root.files(pulled, name)) == SMALL
    with temp_mount(engine.mounts("mine"), dir=tmp_path) as path:
        assert (path / "etc/mine").read_text() == "kept"
        assert (path / "etc/a").read_text() == "new a"
    engine.remove("mine")
    root.assert_clean(name, 3)


def test_index_gives_the_image_for_the_platform(root: Root, registry: LocalRegistry) -> None:
    images = [
        image(Layer.of({"arch": name.encode()}), architecture=name)
        for name in ("s390x", "amd64", "arm64")
    ]
    for each in images:
        registry.push(each.manifest, each.blobs, "multi", each.digest)
    registry.push(index(*images), [], "multi", "1", media_type=OCI_INDEX)
    ref = f"{registry.host}/multi:1"
    options = Options(platforms=(parse_platform("linux/s390x"),))
    pulled = root.pull(ref, options=options)
    assert root.files(pulled, "overlayfs") == {"arch": b"s390x"}
    assert not root.store.content.has(Digest(images[2].digest))
    with pytest.raises(NotFound, match=r"linux/riscv64.*linux/amd64, linux/arm64, linux/s390x"):
        root.pull(ref, options=Options(platforms=(parse_platform("linux/riscv64"),)))
    root.pull(ref, options=Options(all_metadata=True))
    assert root.store.content.has(Digest(images[2].digest))
    other = next(i for i in images[1:] if i.config.find(os.uname().machine.encode()) < 0)
    assert root.store.content.has(Digest(other.digest))
    root.pull(ref, options=Options(all_platforms=True))
    assert all(
        root.store.content.has(Digest("sha256:" + layer_digest))
        for each in images
        for layer_digest in [json.loads(each.manifest)["layers"][0]["digest"][7:]]
    )


@pytest.mark.parametrize("name", SNAPSHOTTERS)
def test_wrong_diff_id(root: Root, registry: LocalRegistry, name: str) -> None:
    good = three_layers()
    lie = image(*good.layers, diff_ids=[good.diff_ids[0], "sha256:" + "0" * 64, good.diff_ids[2]])
    with pytest.raises(DigestMismatch, match=r"diff id of layer sha256:.*expected sha256:0000"):
        root.pull(push(registry, lie), name)
    kinds = {info.kind for info in root.engines[name].walk()}
    assert kinds <= {Kind.COMMITTED}
    assert root.engines[name].fsck() == []
    root.pull(push(registry, good), name)


@pytest.mark.parametrize("name", SNAPSHOTTERS)
def test_layer_that_is_no_archive(root: Root, registry: LocalRegistry, name: str) -> None:
    junk = b"this is no tar archive at all" * 100
    bad = image(Layer.of({"a": b"a"}), Layer(junk, "sha256:" + "1" * 64))
    with pytest.raises(LaminaError, match="unpack layer sha256:"):
        root.pull(push(registry, bad), name)
    assert {info.kind for info in root.engines[name].walk()} <= {Kind.COMMITTED}


def test_wrong_number_of_diff_ids(root: Root, registry: LocalRegistry) -> None:
    good = three_layers()
    lie = image(*good.layers, diff_ids=good.diff_ids[:2])
    with pytest.raises(FormatError, match="3 diff_ids"):
        root.pull(push(registry, lie))


def test_moved_tag_frees_the_old_image(root: Root, registry: LocalRegistry) -> None:
    old, new = three_layers(seed=1), three_layers(seed=2)
    root.pull(push(registry, old))
    pulled = root.pull(push(registry, new))
    assert pulled.image.target.digest == new.digest
    assert not root.store.content.has(Digest(old.digest))
    root.assert_clean("overlayfs", 3)


def test_removed_image_leaves_nothing(root: Root, registry: LocalRegistry) -> None:
    ref = push(registry, three_layers())
    for name in SNAPSHOTTERS:
        root.pull(ref, name)
    root.store.catalogue.delete(ref)
    collected = root.collect()
    assert len(collected.blobs) == 5
    assert len(collected.snapshots) == 6
    assert list(root.store.content.walk()) == []
    assert list((root.store.content.root / "blobs/sha256").iterdir()) == []
    for name in SNAPSHOTTERS:
        root.assert_clean(name, 0)


def test_container_keeps_its_layers(root: Root, registry: LocalRegistry) -> None:
    ref = push(registry, three_layers())
    pulled = root.pull(ref)
    root.engines["overlayfs"].prepare("container", pulled.unpacked[0].chain[1])
    root.store.catalogue.delete(ref)
    assert root.collect().snapshots == (("overlayfs", pulled.unpacked[0].chain[2]),)
    root.engines["overlayfs"].remove("container")
    assert len(root.collect().snapshots) == 2


@pytest.mark.parametrize("name", SNAPSHOTTERS)
def test_concurrent_pulls_download_once(
    open_root: Callable[..., Root], registry: LocalRegistry, name: str
) -> None:
    files = three_layers(2_000_000)
    ref = push(registry, files)
    roots = [open_root() for _ in range(4)]
    with ThreadPoolExecutor(len(roots)) as pool:
        results = list(pool.map(lambda root: root.pull(ref, name), roots))
    assert sum(r.timings.downloaded for r in results) == sum(map(len, files.blobs))
    roots[0].assert_clean(name, 3)


def test_pulls_race_with_removal(open_root: Callable[..., Root], registry: LocalRegistry) -> None:
    ref = push(registry, three_layers())
    puller, remover = open_root(), open_root()
    done = threading.Event()

    def remove() -> None:
        while not done.is_set():
            try:
                remover.store.catalogue.delete(ref)
            except NotFound:
                pass
            remover.collect()

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for _ in range(15):
            puller.pull(ref)
    finally:
        done.set()
        thread.join()
    pulled = puller.pull(ref)
    assert small_files(puller.files(pulled, "overlayfs")) == SMALL
    puller.assert_clean("overlayfs", 3)


def test_cancel(root: Root, registry: LocalRegistry) -> None:
    ref = push(registry, three_layers(5_000_000))
    cancel = Cancel()

    class CancelAtUnpack:
        def update(self, event: Event) -> None:
            if event.stage is Stage.UNPACKING:
                cancel.set()

    with pytest.raises(Cancelled):
        root.pull(ref, progress=CancelAtUnpack(), cancel=cancel)
    assert [i for i in root.engines["overlayfs"].walk() if i.kind is not Kind.COMMITTED] == []
    assert root.engines["overlayfs"].fsck() == []
    pulled = root.pull(ref)
    assert small_files(root.files(pulled, "overlayfs")) == SMALL
    root.assert_clean("overlayfs", 3)


class ClaimingDriver(NativeDriver):
    """Serves the first layers of an image itself: each is one file that tells which blob it is."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.claims = 0
        self.asked: list[Snapshot] = []

    def claim(self, snapshot: Snapshot) -> Claimed | Refused:
        self.asked.append(snapshot)
        if len(self.asked) > self.claims:
            return Refused("it is beyond what this driver serves")
        [mount] = self.mounts(snapshot)
        digest = snapshot.labels[LAYER_DIGEST]
        Path(mount.source, digest.replace(":", "-")).touch()
        return Claimed()


@pytest.fixture
def claiming(root: Root) -> ClaimingDriver:
    directory = root.root / "io.containerd.snapshotter.v1.claiming"
    directory.mkdir()
    driver = ClaimingDriver(directory)
    root.engines["claiming"] = Engine("claiming", driver, directory, sync_remove=True)
    return driver


@pytest.mark.parametrize("claims", [0, 1, 3])
def test_layers_that_the_snapshotter_serves_are_not_fetched(
    root: Root, registry: LocalRegistry, claiming: ClaimingDriver, claims: int
) -> None:
    claiming.claims = claims
    files = three_layers()
    ref = push(registry, files)
    pulled = root.pull(ref, "claiming")
    [unpacked] = pulled.unpacked
    blobs = [layer.digest for layer in unpacked.manifest.layers]
    assert [root.store.content.has(blob) for blob in blobs] == [False] * claims + [True] * (
        3 - claims
    )
    infos = [root.engines["claiming"].stat(chain_id) for chain_id in unpacked.chain]
    assert [REMOTE in info.labels for info in infos] == [True] * claims + [False] * (3 - claims)
    assert [info.parent for info in infos] == ["", *unpacked.chain[:2]]
    origin = infos[0].labels
    assert origin[IMAGE_REF] == ref
    assert origin[MANIFEST_DIGEST] == files.digest
    assert (origin[LAYER_DIGEST], origin[LAYER_SIZE]) == (blobs[0], str(len(files.layers[0].blob)))
    assert origin[IMAGE_LAYERS] == ",".join(blobs)
    found = root.files(pulled, "claiming")
    assert {path for path in found if path.startswith("sha256-")} == {
        blob.replace(":", "-") for blob in blobs[:claims]
    }
    root.assert_clean("claiming", 3)
    root.events.clear()
    assert root.pull(ref, "claiming").timings.downloaded == 0
    assert len(claiming.asked) == 3


def test_imported_layers_have_no_origin(
    root: Root, registry: LocalRegistry, claiming: ClaimingDriver
) -> None:
    pulled = root.pull(push(registry, three_layers()), "native")
    unpack(pulled.image, store=root.store, destination=root.destination("claiming"))
    assert len(claiming.asked) == 3
    assert all(IMAGE_REF not in snapshot.labels for snapshot in claiming.asked)
