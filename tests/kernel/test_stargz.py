"""The stargz snapshotter: images of a real registry that are used before they are fetched."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.core.digest import Digest, parse_digest
from lamina.core.labels import REMOTE
from lamina.errors import FailedPrecondition, NotFound
from lamina.formats.compression import decompress
from lamina.formats.estargz.annotations import CHUNKED_DIGESTS, TOC_DIGEST
from lamina.formats.estargz.footer import find_toc
from lamina.images.platform import default_platform
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import Credential, CredentialStore
from lamina.images.registry.hosts import HostsConfig
from lamina.mount import temp_mount, unmount_recursive
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.lazy_blobs import size_in_manifest
from lamina.snapshotters.lazy_overlay import REASON_LABEL
from lamina.snapshotters.lazy_plugin import NEEDS
from lamina.snapshotters.stargz.plugin import StargzConfig
from lamina.snapshotters.stargz.toc import LAYER_OF_TOC
from lamina.store import Store
from tests import hard_image
from tests.archives import Archive
from tests.erofs import Bytes
from tests.estargz import make_chunked_blob, outsource
from tests.fixtures_containers import Machine, wait_for
from tests.fixtures_registry import LocalRegistry, running_registry
from tests.fixtures_stargz import (
    ALL,
    FILES,
    GATES,
    annotated,
    end_lazy,
    end_worker,
    fetched,
    noise,
    processes,
    push,
    read_all,
    stargz_layer,
    top,
    worker,
)
from tests.images import ImageFiles, Layer, digest, image
from tests.kernel.test_archive import layout, pack
from tests.unit.test_registry_real import HTPASSWD

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs, pytest.mark.registry]


@pytest.mark.parametrize("gate", GATES)
def test_pull_fetches_no_layer_and_reads_are_right(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    files: ImageFiles,
    tmp_path: Path,
    gate: str,
) -> None:
    store = open_store(gate)
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    for layer in files.layers:
        assert not store.images.content.has(layer.digest)  # type: ignore[arg-type]
    engine = store.snapshotter("stargz")
    assert [REMOTE in info.labels for info in engine.walk()] == [True, True]
    assert fetched(store) == 0
    mounts = engine.prepare("container", top(store, ref))
    with temp_mount(mounts, dir=tmp_path) as root:
        assert (root / "a").stat().st_size == 5
        assert fetched(store) == 0
        assert (root / "a").read_bytes() == b"first"
        assert 0 < fetched(store) < 200_000
        (root / "b").write_text("changed")
        assert (root / "dir/more").read_bytes() == b"more"
    assert read_all(store, ref, tmp_path) == ALL
    assert store.fsck() == []


@pytest.mark.parametrize("gate", GATES)
def test_names_and_attributes_need_no_worker(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    files: ImageFiles,
    tmp_path: Path,
    gate: str,
) -> None:
    store = open_store(gate)
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    mounts = store.snapshotter("stargz").view("look", top(store, ref))
    with temp_mount(mounts, dir=tmp_path) as root:
        stopped = worker(store).status().pid
        os.kill(stopped, signal.SIGSTOP)
        try:
            found = subprocess.run(
                ("find", root, "-type", "f", "-printf", "%P %s\n"),
                capture_output=True,
                check=True,
                text=True,
                timeout=60,
            )
        finally:
            os.kill(stopped, signal.SIGCONT)
    store.snapshotter("stargz").remove("look")
    sizes = dict(line.split() for line in found.stdout.splitlines())
    assert sizes == {path: str(len(content)) for path, content in ALL.items()}
    assert fetched(store) == 0


def test_layers_that_are_not_lazy_are_unpacked(
    open_store: Callable[..., Store], registry: LocalRegistry, tmp_path: Path
) -> None:
    store = open_store()
    files = image(stargz_layer(FILES[0]), Layer.of({"plain": b"plain"}), stargz_layer(FILES[1]))
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    chain = store.images.select(store.image(ref), default_platform()).chain
    infos = [engine.stat(chain_id) for chain_id in chain]
    assert [REMOTE in info.labels for info in infos] == [True, False, True]
    assert infos[1].labels[REASON_LABEL].startswith("it is no eStargz or zstd:chunked")
    assert REASON_LABEL not in infos[2].labels
    has = store.images.content.has
    assert [has(parse_digest(layer.digest)) for layer in files.layers] == [False, True, False]
    assert read_all(store, ref, tmp_path) == ALL | {"plain": b"plain"}


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({TOC_DIGEST: "sha256:" + "0" * 64}, "check TOC of layer"),
        ({TOC_DIGEST: ""}, "the manifest names no TOC digest"),
    ],
)
def test_what_cannot_be_verified_is_unpacked(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    files: ImageFiles,
    tmp_path: Path,
    annotations: dict[str, str],
    said: str,
) -> None:
    store = open_store()
    manifest = json.loads(annotated(files))
    for entry in manifest["layers"]:
        entry["annotations"].update(annotations)
    ref = push(registry, files, json.dumps(manifest).encode())
    store.pull(ref, snapshotter="stargz", plain_http=True)
    infos = list(store.snapshotter("stargz").walk())
    assert [REMOTE in info.labels for info in infos] == [False, False]
    assert all(said in info.labels[REASON_LABEL] for info in infos)
    assert read_all(store, ref, tmp_path) == ALL


def push_outsourced(registry: LocalRegistry, files: ImageFiles, *, tocs: bool = True) -> str:
    """Push an image and, unless told otherwise, the one that has the TOCs of its layers."""
    parts = [outsource(layer.blob) for layer in files.layers]
    lean = image(*(Layer(blob, digest(gzip.decompress(blob))) for blob, _ in parts))
    entries = [json.loads(lean.manifest), json.loads(annotated(files))]
    for entry, layer in zip(entries[0]["layers"], entries[1]["layers"], strict=True):
        entry["annotations"] = layer["annotations"]
    ref = push(registry, lean, json.dumps(entries[0]).encode())
    if tocs:
        having = image(*(Layer(toc, digest(toc)) for _, toc in parts))
        manifest = json.loads(having.manifest)
        for entry, layer in zip(manifest["layers"], lean.layers, strict=True):
            entry["annotations"] = {LAYER_OF_TOC: layer.digest}
        registry.push(json.dumps(manifest).encode(), having.blobs, "test", "1-esgztoc")
    return ref


def test_tables_of_contents_may_be_in_an_image_of_their_own(
    open_store: Callable[..., Store], registry: LocalRegistry, files: ImageFiles, tmp_path: Path
) -> None:
    store = open_store()
    ref = push_outsourced(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    assert fetched(store) == 0
    assert all(REMOTE in info.labels for info in store.snapshotter("stargz").walk())
    assert read_all(store, ref, tmp_path) == ALL


@pytest.mark.parametrize(
    ("tocs", "by_digest", "said"),
    [(False, False, "esgztoc"), (True, True, "pull by tag")],
)
def test_layer_whose_table_of_contents_is_not_found_is_unpacked(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    files: ImageFiles,
    tmp_path: Path,
    tocs: bool,
    by_digest: bool,
    said: str,
) -> None:
    store = open_store()
    ref = push_outsourced(registry, files, tocs=tocs)
    if by_digest:
        store.pull(ref, unpack=False, plain_http=True)
        ref = f"{registry.host}/test@{store.image(ref).target.digest}"
    store.pull(ref, snapshotter="stargz", plain_http=True)
    infos = list(store.snapshotter("stargz").walk())
    assert [REMOTE in info.labels for info in infos] == [False, False]
    assert all(said in info.labels[REASON_LABEL] for info in infos)
    assert read_all(store, ref, tmp_path) == ALL


def test_directories_without_entry_look_as_below(
    open_store: Callable[..., Store], registry: LocalRegistry, tmp_path: Path
) -> None:
    store = open_store()
    base = hard_image.layer(Archive().dir("tmp", 0o1777, uid=3, gid=4))
    files = image(base, stargz_layer({"tmp/a": b"a"}), stargz_layer({"tmp/b": b"b"}))
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    assert sorted(REMOTE in info.labels for info in engine.walk()) == [False, True, True]
    with temp_mount(engine.view("look", top(store, ref)), dir=tmp_path, read_only=True) as root:
        status = (root / "tmp").stat()
        assert sorted(path.name for path in (root / "tmp").iterdir()) == ["a", "b"]
    engine.remove("look")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o1777, 3, 4)


def test_layer_whose_worker_cannot_be_started_is_unpacked(
    open_store: Callable[..., Store], registry: LocalRegistry, files: ImageFiles, tmp_path: Path
) -> None:
    store = open_store()
    engine = store.snapshotter("stargz")
    (engine.root / "lazy").touch()  # where the worker's directory is to be
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    infos = list(engine.walk())
    assert [REMOTE in info.labels for info in infos] == [False, False]
    assert all("File exists" in info.labels[REASON_LABEL] for info in infos)
    assert not list(engine.root.glob("snapshots/*/layer.erofs"))
    assert read_all(store, ref, tmp_path) == ALL


@pytest.mark.parametrize("right", [True, False])
def test_layers_of_podman_are_verified_by_what_podman_says(
    open_store: Callable[..., Store], registry: LocalRegistry, tmp_path: Path, right: bool
) -> None:
    store = open_store()
    blob = make_chunked_blob(FILES[0] | {"sparse": b"a" * 5000 + bytes(1 << 20) + b"z"}, 5000)
    location = find_toc(Bytes(blob))
    packed = blob[location.offset : location.offset + location.length]
    tar = b"".join(decompress(io.BytesIO(blob).read))
    files = image(Layer(blob, digest(tar), "application/vnd.oci.image.layer.v1.tar+zstd"))
    manifest = json.loads(files.manifest)
    said = digest(packed if right else b"another")
    manifest["layers"][0]["annotations"] = {CHUNKED_DIGESTS[0]: said}
    ref = push(registry, files, json.dumps(manifest).encode())
    store.pull(ref, snapshotter="stargz", plain_http=True)
    [info] = store.snapshotter("stargz").walk()
    assert (REMOTE in info.labels) == right
    assert right or "check TOC" in info.labels[REASON_LABEL]
    found = read_all(store, ref, tmp_path)
    assert found["sparse"] == b"a" * 5000 + bytes(1 << 20) + b"z"
    assert found["big"] == FILES[0]["big"]
    assert not right or fetched(store) < sum(map(len, FILES[0].values())) + 20_000


def test_imported_images_are_unpacked(
    open_store: Callable[..., Store], files: ImageFiles, tmp_path: Path
) -> None:
    store = open_store()
    archive = pack(layout(files, annotations={"io.containerd.image.name": "docker.io/library/a:1"}))
    store.import_images(io.BytesIO(archive), snapshotter="stargz")
    infos = list(store.snapshotter("stargz").walk())
    assert [info.labels[REASON_LABEL] for info in infos] == [
        "its labels do not say which image it is of"
    ] * 2
    assert read_all(store, "docker.io/library/a:1", tmp_path) == ALL


def test_a_registry_that_asks_for_a_login_is_not_told_that_of_whoever_pulls(
    open_store: Callable[..., Store], files: ImageFiles, tmp_path: Path
) -> None:
    store = open_store()
    with running_registry(tmp_path / "registry") as open_to_all:
        push(open_to_all, files)
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    with running_registry(tmp_path / "registry", htpasswd=tmp_path / "htpasswd") as registry:
        ref = f"{registry.host}/test:1"
        user = CredentialStore(user=Credential("user", "pass:word"))
        client = Registry(HostsConfig(plain_http=True), user)
        store.pull(ref, snapshotter="stargz", registry=client)
        client.close()
    infos = list(store.snapshotter("stargz").walk())
    assert [REMOTE in info.labels for info in infos] == [False, False]
    for reason in (info.labels[REASON_LABEL] for info in infos):
        assert "401" in reason or "asks for a user" in reason
        assert "docker_config of this snapshotter" in reason
        assert "--user" not in reason
    assert read_all(store, ref, tmp_path) == ALL


@pytest.mark.parametrize("gate", GATES)
def test_complete_layers_need_nobody(
    open_store: Callable[..., Store],
    files: ImageFiles,
    tmp_path: Path,
    root_dir: Path,
    gate: str,
) -> None:
    store = open_store(gate, quiet=False)
    with running_registry(tmp_path / "registry") as registry:
        ref = push(registry, files)
        store.pull(ref, snapshotter="stargz", plain_http=True)
        with contextlib.suppress(NotFound):  # complete already
            for layer in worker(store).status().layers:
                worker(store).wait(Path(layer.directory), 30)
    assert read_all(store, ref, tmp_path) == ALL
    end_worker(root_dir)
    unmount_recursive(root_dir)  # as after a restart of the machine
    again = open_store(gate)
    assert read_all(again, ref, tmp_path) == ALL


@pytest.mark.fuse
def test_containers_that_are_made_later_need_no_worker(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    files: ImageFiles,
    tmp_path: Path,
    root_dir: Path,
) -> None:
    store = open_store("fuse", quiet=True)
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    before = engine.view("before", top(store, ref))
    with temp_mount(before, dir=tmp_path) as root:
        assert (root / "a").read_bytes() == b"first"
        for layer in worker(store).status().layers:
            worker(store).wait(Path(layer.directory), 30)
        later = engine.view("later", top(store, ref))
        Path("/proc/sys/vm/drop_caches").write_text("1")
        end_worker(root_dir)
        with temp_mount(later, dir=tmp_path) as other:
            found = {path: (other / path).read_bytes() for path in ALL}
        with pytest.raises(OSError, match=r"Input/output error|not connected"):
            (root / "big").read_bytes()
    assert found == ALL
    for name in ("before", "later"):
        engine.remove(name)
    assert store.fsck() == []


@pytest.mark.parametrize("gate", GATES)
def test_worker_is_killed_while_everything_is_read(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    tmp_path: Path,
    gate: str,
) -> None:
    store = open_store(gate)
    parts = {f"part-{number}": noise(400_000, number) for number in range(12)}
    ref = push(registry, image(stargz_layer(parts)))
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    with temp_mount(engine.view("look", top(store, ref)), dir=tmp_path, read_only=True) as root:
        for number, (name, content) in enumerate(parts.items()):
            if number % 3 == 0:
                os.kill(worker(store).status().pid, signal.SIGKILL)
            assert (root / name).read_bytes() == content
    engine.remove("look")


@pytest.mark.parametrize("gate", GATES)
def test_worker_is_upgraded_while_everything_is_read(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    tmp_path: Path,
    gate: str,
) -> None:
    store = open_store(gate)
    parts = {f"part-{number}": noise(400_000, number) for number in range(6)}
    ref = push(registry, image(stargz_layer(parts)))
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    workers = set()
    with temp_mount(engine.view("look", top(store, ref)), dir=tmp_path, read_only=True) as root:
        for number, (name, content) in enumerate(parts.items()):
            if number % 2 == 0:
                workers.add(worker(store).status().pid)
                worker(store).upgrade()
            assert (root / name).read_bytes() == content
        # The one that is told to leave answers before it does.
        wait_for(lambda: worker(store).status().pid not in workers, seconds=60)
    engine.remove("look")


def test_restart_of_the_machine_with_layers_that_are_not_complete(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    files: ImageFiles,
    tmp_path: Path,
    root_dir: Path,
) -> None:
    store = open_store("fuse")
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    engine.prepare("container", top(store, ref))
    unmount_recursive(root_dir)
    end_worker(root_dir)
    with temp_mount(
        open_store("fuse").snapshotter("stargz").mounts("container"), dir=tmp_path
    ) as at:
        assert (at / "big").read_bytes() == ALL["big"]


def test_removed_image_leaves_nothing(
    open_store: Callable[..., Store], registry: LocalRegistry, files: ImageFiles
) -> None:
    store = open_store()
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    store.remove_image(ref)
    store.collect()
    engine.cleanup()
    assert list(engine.walk()) == []
    assert worker(store).status().layers == []
    assert list((engine.root / "snapshots").iterdir()) == []
    assert store.fsck() == []


@pytest.mark.runtime
def test_container_runs_from_a_lazy_image(
    machine: Machine, registry: LocalRegistry, tmp_path: Path
) -> None:
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    files = image(stargz_layer({"bin/busybox": busybox, "unused": noise(2_000_000, 9)}, 0o755))
    manifest = json.loads(annotated(files))
    ref = push(registry, files, json.dumps(manifest).encode())
    snapshotter = ("--snapshotter", "stargz")
    try:
        machine.lamina("images", "pull", "--plain-http", *snapshotter, ref)
        argv = ("run", "--rm", *snapshotter, ref, machine.id, "/bin/busybox", "echo", "hello")
        assert machine.lamina(*argv).stdout == "hello\n"
        unpacked = machine.lamina("snapshots", *snapshotter, "ls").stdout
        assert "Committed" in unpacked
    finally:
        end_lazy(machine.root)


def test_configuration() -> None:
    [problem] = StargzConfig(gate="wide").problems()
    assert problem == "gate: 'wide' is none of auto, fanotify, fuse"
    assert StargzConfig(gate="fuse").problems() == []
    [problem] = StargzConfig(fetching_timeout_sec=0).problems()
    assert problem == "fetching_timeout_sec: 0 is no number of seconds above 0"
    [problem] = StargzConfig(cache_budget="much").problems()
    assert problem.startswith("cache_budget: ")
    assert StargzConfig(cache_budget="1GiB").budget() == 1 << 30
    assert StargzConfig().budget() is None


def test_needs_are_met(tmp_path: Path) -> None:
    assert [need.probe(tmp_path) for need in NEEDS] == [None] * 3
    assert list(tmp_path.iterdir()) == []


def test_size_of_a_layer_is_asked_for_where_no_label_tells(
    registry: LocalRegistry, files: ImageFiles
) -> None:
    manifest = annotated(files)
    ref = push(registry, files, manifest)
    access = Access(plain_http=True)
    for layer in files.layers:
        blob = parse_digest(layer.digest)
        assert size_in_manifest(access, ref, digest_of(manifest), blob) == len(layer.blob)
    with pytest.raises(NotFound):
        size_in_manifest(access, ref, digest_of(manifest), digest_of(b"of no layer"))


def digest_of(data: bytes) -> Digest:
    return parse_digest(digest(data))


@pytest.mark.fanotify
def test_nothing_is_made_on_layers_that_nobody_has_guarded(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    files: ImageFiles,
    tmp_path: Path,
    root_dir: Path,
) -> None:
    store = open_store("fanotify")
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    end_worker(root_dir)
    for _ in range(2):  # nor once a worker is there again
        with pytest.raises(FailedPrecondition, match="holder, standby and worker were killed"):
            engine.prepare("container", top(store, ref))
    for layer in worker(store).status().layers:
        assert layer.doubt
    for key in [info.name for info in engine.walk()][::-1]:
        engine.remove(key)
    engine.cleanup()
    store.pull(ref, snapshotter="stargz", plain_http=True)
    assert read_all(store, ref, tmp_path) == ALL


@pytest.mark.fuse
def test_fuse_layers_are_mounted_anew_after_all_were_killed(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    files: ImageFiles,
    tmp_path: Path,
    root_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = open_store("fuse")
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    with temp_mount(engine.prepare("before", top(store, ref)), dir=tmp_path) as root:
        assert (root / "a").read_bytes() == b"first"
        end_worker(root_dir)
        engine.mounts("before")
        assert caplog.text.count("mounted a lazy layer anew") == len(files.layers)
        end_worker(root_dir)
        assert read_all(store, ref, tmp_path) == ALL
        with pytest.raises(OSError, match=r"Transport endpoint|Input/output error"):
            (root / "big").read_bytes()
        for cache in root_dir.rglob("snapshots/*/cache"):
            worker(store).wait(cache, 30)
        engine.mounts("before")  # from the cache files now
    end_worker(root_dir)
    with temp_mount(engine.mounts("before"), dir=tmp_path) as root:
        assert (root / "big").read_bytes() == ALL["big"]
    assert processes(root_dir) == []
    engine.remove("before")
