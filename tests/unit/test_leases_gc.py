"""Leases, and what a collection takes and leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.digest import Digest, sha256
from lamina.core.labels import GC_REF_SNAPSHOT, GC_ROOT, SNAPSHOT_REF
from lamina.errors import AlreadyExists, NotFound
from lamina.images.gc import collect
from lamina.images.layer_lock import layer_lock
from lamina.images.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor
from lamina.images.registry.cancel import Cancel
from lamina.images.store import ImageStore
from lamina.images.tree import child_labels, read_document
from lamina.meta.leases import Resource
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.native.driver import NativeDriver
from tests.file_driver import FileDriver


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore(tmp_path) as opened:
        yield opened


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    directory = tmp_path / "snapshotter"
    directory.mkdir()
    with Engine("native", NativeDriver(directory), directory, sync_remove=True) as opened:
        yield opened


def put(store: ImageStore, data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
    blob = Descriptor(media_type=media_type, digest=sha256(data), size=len(data))
    store.content.put(data, blob)
    return blob


def put_image(store: ImageStore, name: str) -> list[Descriptor]:
    """Store an image of one layer; return layer, configuration, manifest."""
    layer, config = put(store, b"layer " + name.encode()), put(store, b"{}", OCI_CONFIG)
    document = {
        "schemaVersion": 2,
        "config": {"mediaType": OCI_CONFIG, "digest": config.digest, "size": config.size},
        "layers": [{"mediaType": OCI_LAYER, "digest": layer.digest, "size": layer.size}],
    }
    manifest = put(store, json.dumps(document).encode(), OCI_MANIFEST)
    store.content.label(manifest.digest, child_labels(read_document(manifest, store.read)))
    store.catalogue.put(name, manifest)
    return [layer, config, manifest]


def committed(engine: Engine, name: str, parent: str = "", *, unpacked: bool = True) -> None:
    labels = {SNAPSHOT_REF: name} if unpacked else {}
    engine.prepare(f"extract-1 {name}", parent, labels=labels)
    engine.commit(name, f"extract-1 {name}", labels=labels)


def blobs(store: ImageStore) -> set[Digest]:
    return {info.digest for info in store.content.walk()}


def keys(engine: Engine) -> list[str]:
    return [info.name for info in engine.walk()]


def test_lease_life(store: ImageStore) -> None:
    lease = store.leases.create("mine", labels={"a": "b"})
    with pytest.raises(AlreadyExists):
        store.leases.create("mine")
    assert store.leases.all() == [lease]
    store.leases.add("mine", [Resource("content", "x")])
    assert store.leases.resources("mine") == [Resource("content", "x")]
    store.leases.delete("mine")
    assert store.leases.resources("mine") == []
    with pytest.raises(NotFound):
        store.leases.delete("mine")
    with pytest.raises(NotFound):
        store.leases.add("mine", [])


def test_an_image_holds_its_content(store: ImageStore) -> None:
    kept, removed = put_image(store, "kept"), put_image(store, "removed")
    loose = put(store, b"loose")
    store.catalogue.delete("removed")
    collected = collect(store, {})
    assert blobs(store) == {d.digest for d in kept}
    assert set(collected.blobs) == {removed[0].digest, removed[2].digest, loose.digest}
    assert collected.size == removed[0].size + removed[2].size + loose.size


def test_roots_by_label(store: ImageStore) -> None:
    loose = put(store, b"loose")
    store.content.label(loose.digest, {GC_ROOT: "2024-01-01T00:00:00Z"})
    collect(store, {})
    assert blobs(store) == {loose.digest}


def test_storage_is_freed_outside_the_transaction(store: ImageStore, tmp_path: Path) -> None:
    """While a collection deletes layers, other processes can write their records."""
    driver = FileDriver(tmp_path / "files")
    order: list[str] = []

    def write() -> None:
        with ImageStore(tmp_path) as other:
            other.leases.create("other")
        order.append("written")

    with Engine("files", driver, tmp_path / "files", sync_remove=True) as engine:
        committed(engine, "base")
        driver.pause["destroy"] = write
        assert collect(store, {"files": engine}).snapshots == (("files", "base"),)
        assert order == ["written"]
        assert driver.ids() == []
        assert not engine.pending()


def test_snapshots_that_others_made_are_roots(store: ImageStore, engine: Engine) -> None:
    """A containerd that Lamina serves labels its layers as unpacked ones, and collects them."""
    committed(engine, "base")
    committed(engine, "dead")
    labels = {SNAPSHOT_REF: "sha256:1"}
    engine.prepare("k8s.io/1/extract-1 sha256:1", "base", labels=labels)
    engine.commit("k8s.io/2/sha256:1", "k8s.io/1/extract-1 sha256:1", labels=labels)
    engine.prepare("k8s.io/3/extract-2 sha256:2", labels={SNAPSHOT_REF: "sha256:2"})
    rooted = {SNAPSHOT_REF: "top", GC_ROOT: "2024-01-01T00:00:00Z"}
    engine.prepare("extract-3 top", labels=rooted)
    assert collect(store, {"native": engine}).snapshots == (("native", "dead"),)
    engine.commit("top", "extract-3 top", labels=rooted)
    assert collect(store, {"native": engine}).snapshots == ()


def test_a_live_lease_holds_everything(store: ImageStore, engine: Engine) -> None:
    blob = put(store, b"data")
    committed(engine, "base")
    committed(engine, "top", "base")
    engine.prepare("extract-2 next", "top", labels={SNAPSHOT_REF: "next"})
    resources = [
        Resource.content(blob.digest),
        Resource.snapshot("native", "top"),
        Resource.snapshot("native", "extract-2 next"),
    ]
    store.leases.create("pull", owned=True, resources=resources, seconds=-1)
    collect(store, {"native": engine})
    assert blobs(store) == {blob.digest}
    assert keys(engine) == ["base", "extract-2 next", "top"]


def test_a_dead_owner_holds_what_is_complete(tmp_path: Path, engine: Engine) -> None:
    with ImageStore(tmp_path) as dead:
        blob = put(dead, b"data")
        committed(engine, "base")
        engine.prepare("extract-2 next", "base", labels={SNAPSHOT_REF: "next"})
        resources = [
            Resource.content(blob.digest),
            Resource.snapshot("native", "base"),
            Resource.snapshot("native", "extract-2 next"),
        ]
        dead.leases.create("pull", owned=True, resources=resources)
        with dead.content.open_writer(f"layer-{blob.digest}x") as writer:
            writer.write(b"half")
    with ImageStore(tmp_path) as store:
        assert store.leases.abandoned()
        collected = collect(store, {"native": engine})
        assert collected.snapshots == (("native", "extract-2 next"),)
        assert blobs(store) == {blob.digest}
        assert keys(engine) == ["base"]
        assert not store.leases.abandoned()
        assert collected.ingests == (f"layer-{blob.digest}x",)


def test_unfinished_downloads_of_a_dead_owner_stay(tmp_path: Path) -> None:
    wanted = Descriptor(media_type=OCI_LAYER, digest=sha256(b"all"), size=3)
    with ImageStore(tmp_path) as dead:
        dead.leases.create("pull", owned=True, resources=[Resource.content(wanted.digest)])
        with dead.content.open_writer(f"layer-{wanted.digest}", expected=wanted) as writer:
            writer.write(b"al")
    with ImageStore(tmp_path) as store:
        assert collect(store, {}).ingests == ()
        store.leases.delete("pull")
        assert collect(store, {}).ingests == (f"layer-{wanted.digest}",)


def test_a_blob_being_written_is_left_alone(store: ImageStore) -> None:
    with store.content.open_writer("anything") as writer:
        writer.write(b"half")
        assert collect(store, {}).ingests == ()
        writer.commit()


def test_expired_leases_go(store: ImageStore) -> None:
    blob = put(store, b"data")
    store.leases.create("old", seconds=-1, resources=[Resource.content(blob.digest)])
    assert collect(store, {}).blobs == (blob.digest,)
    assert store.leases.all() == []


def test_snapshots_of_users_are_never_taken(store: ImageStore, engine: Engine) -> None:
    committed(engine, "layer")
    committed(engine, "unused")
    committed(engine, "by hand", unpacked=False)
    engine.prepare("container", "layer")
    engine.view("look")
    assert collect(store, {"native": engine}).snapshots == (("native", "unused"),)
    assert keys(engine) == ["by hand", "container", "layer", "look"]


def test_an_image_holds_its_layers(store: ImageStore, engine: Engine) -> None:
    config = put_image(store, "image")[1]
    committed(engine, "base")
    committed(engine, "top", "base")
    committed(engine, "above", "top")
    store.content.label(config.digest, {f"{GC_REF_SNAPSHOT}.native": "top"})
    assert collect(store, {"native": engine}).snapshots == (("native", "above"),)
    store.catalogue.delete("image")
    assert collect(store, {"native": engine}).snapshots == (("native", "top"), ("native", "base"))


def test_leftovers_of_a_crash_go(store: ImageStore) -> None:
    orphan = store.content.root / "blobs/sha256" / ("0" * 64)
    orphan.write_bytes(b"x")
    (store.locks / "dead").touch()
    (store.root / "owners/dead").touch()
    with layer_lock(store.locks, "native", sha256(b"x"), Cancel()):
        collected = collect(store, {})
        assert len(os.listdir(store.locks)) == 1
    assert collected.blobs == (Digest("sha256:" + "0" * 64),)
    assert not orphan.exists()
    assert os.listdir(store.root / "owners") == []
