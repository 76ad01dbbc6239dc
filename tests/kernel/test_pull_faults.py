"""Pulls that are killed, cut off, stalled or lied to, and the pull after each."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.mount import Mount
from lamina.core.snapshot import Kind
from lamina.errors import DataLoss, LaminaError, ResourceExhausted
from lamina.images.operation import Options
from lamina.images.registry.retry import RetryPolicy
from lamina.layer.limits import LayerLimits
from lamina.mount import mount_all, unmount_all
from tests.faulty_registry import FaultyRegistry, cut, faulty_registry, stall
from tests.fixtures_registry import LocalRegistry
from tests.images import ImageFiles, Layer, image
from tests.killed import kill_after
from tests.roots import SMALL, SNAPSHOTTERS, Root, small_files, three_layers

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = [pytest.mark.root, pytest.mark.overlay]

KILLS = 104
HASTY = RetryPolicy(attempts=1, mirror_attempts=1)


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


@pytest.fixture
def root(root_dir: Path) -> Iterator[Root]:
    opened = Root(root_dir, retry=HASTY)
    yield opened
    opened.close()


def serve(faulty: FaultyRegistry, files: ImageFiles) -> str:
    for blob in files.blobs:
        faulty.add_blob(blob)
    faulty.add_manifest("1", files.manifest)
    return f"{faulty.host}/team/app:1"


def child(root: Path, reference: str, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.roots", str(root), reference, name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.registry
def test_kills_at_random_moments(root_dir: Path, registry: LocalRegistry) -> None:
    seconds = random.Random(7)
    for number in range(KILLS):
        name = SNAPSHOTTERS[number % 2]
        files = three_layers(500_000, seed=number)
        registry.push(files.manifest, files.blobs, "test", "1")
        reference = f"{registry.host}/test:1"
        process = child(root_dir, reference, name)
        kill_after(process, seconds.uniform(0.25, 1.0))
        process.communicate()
        if number % 8 not in {6, 7}:  # else several kills in a row pile up
            continue
        root = Root(root_dir)
        try:
            pulled = root.pull(reference, name)
            assert small_files(root.files(pulled, name)) == SMALL
            for other in SNAPSHOTTERS:
                assert root.engines[other].fsck() == []
            assert [i.kind for i in root.engines[name].walk() if i.kind != Kind.COMMITTED] == []
            root.store.catalogue.delete(reference)
            root.collect()
            for other in SNAPSHOTTERS:
                root.assert_clean(other, 0)
            assert list(root.store.content.walk()) == []
            assert list(root.store.mounts.iterdir()) == []
        finally:
            root.close()


@pytest.mark.registry
@pytest.mark.parametrize("name", SNAPSHOTTERS)
def test_two_processes_download_once(root_dir: Path, registry: LocalRegistry, name: str) -> None:
    files = three_layers(3_000_000)
    registry.push(files.manifest, files.blobs, "test", "1")
    Root(root_dir).close()
    processes = [child(root_dir, f"{registry.host}/test:1", name) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum(int(out) for out, _ in outputs) == sum(map(len, files.blobs))
    root = Root(root_dir)
    try:
        root.assert_clean(name, 3)
    finally:
        root.close()


@pytest.mark.parametrize("name", SNAPSHOTTERS)
def test_a_broken_download_goes_on_at_its_byte(
    root: Root, faulty: FaultyRegistry, name: str
) -> None:
    files = image(
        Layer.of({"etc/a": b"new a", "etc/c": b"c", "big": random.Random(1).randbytes(900_000)})
    )
    reference = serve(faulty, files)
    layer = files.layers[0].digest
    faulty.fault(layer, cut(300_001))
    with pytest.raises(LaminaError):
        root.pull(reference, name)
    [ingest] = root.store.content.ingests()
    assert ingest.offset == 300_001
    assert list(root.engines[name].walk()) == []
    assert root.collect().ingests == ()
    pulled = root.pull(reference, name)
    ranges = [s.headers.get("Range") for s in faulty.seen if s.path.endswith(layer)]
    size = len(files.layers[0].blob)
    assert ranges == [None, f"bytes=300001-{size - 1}"]
    assert pulled.timings.downloaded == size - 300_001
    assert small_files(root.files(pulled, name)) == SMALL
    root.assert_clean(name, 1)


def test_finished_layers_are_not_fetched_again(root: Root, faulty: FaultyRegistry) -> None:
    files = three_layers()
    reference = serve(faulty, files)
    faulty.fault(files.layers[2].digest, cut(10))
    with pytest.raises(LaminaError):
        root.pull(reference, "native", options=Options(downloads=1))
    root.collect()
    faulty.seen.clear()
    root.pull(reference, "native")
    fetched = {s.path.rpartition("/")[2] for s in faulty.seen if "/blobs/" in s.path}
    assert fetched == {files.layers[2].digest}
    root.assert_clean("native", 3)


def test_interrupt_while_the_registry_is_silent(root_dir: Path, faulty: FaultyRegistry) -> None:
    files = three_layers()
    reference = serve(faulty, files)
    for layer in files.layers:
        faulty.fault(layer.digest, stall(100_000))
    process = child(root_dir, reference, "overlayfs")
    deadline = time.monotonic() + 20
    while len(faulty.seen) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - began < 3
    assert b"KeyboardInterrupt" in said
    root = Root(root_dir)
    try:
        assert list(root.engines["overlayfs"].walk()) == []
        assert root.engines["overlayfs"].fsck() == []
        assert root.pull(reference).timings.downloaded < sum(map(len, files.blobs)) - 250_000
        root.assert_clean("overlayfs", 3)
    finally:
        root.close()


@pytest.mark.parametrize("name", SNAPSHOTTERS)
def test_a_bomb_meets_the_limit(root: Root, faulty: FaultyRegistry, name: str) -> None:
    bomb = image(Layer.of({"small": b"x"}), Layer.of({"zeros": bytes(20_000_000)}))
    limits = LayerLimits(max_bytes=1_000_000)
    with pytest.raises(ResourceExhausted, match=f"unpack layer {bomb.layers[1].digest}"):
        root.pull(serve(faulty, bomb), name, options=Options(limits=limits))
    assert {i.kind for i in root.engines[name].walk()} <= {Kind.COMMITTED}


@pytest.mark.parametrize("lie", [-1, 1])
def test_a_manifest_lies_about_a_size(root: Root, faulty: FaultyRegistry, lie: int) -> None:
    files = three_layers()
    size = len(files.layers[1].blob)
    manifest = files.manifest.replace(b"%d" % size, b"%d" % (size + lie))
    serve(faulty, files)
    faulty.add_manifest("lie", manifest)
    with pytest.raises(DataLoss, match=files.layers[1].digest):
        root.pull(f"{faulty.host}/team/app:lie")
    assert [i for i in root.engines["overlayfs"].walk() if i.kind != Kind.COMMITTED] == []


def test_too_little_room_is_told_before_the_download(
    tmp_path: Path, faulty: FaultyRegistry
) -> None:
    files = image(Layer.of({"big": random.Random(3).randbytes(6_000_000)}))
    reference = serve(faulty, files)
    small = tmp_path / "small"
    small.mkdir()
    disk = [Mount("tmpfs", "tmpfs", "", ("size=4m",))]
    mount_all(disk, small)
    try:
        root = Root(small / "root")
        try:
            with pytest.raises(ResourceExhausted, match=rf"\(60\d{{5}} bytes\).*{small}"):
                root.pull(reference)
        finally:
            root.close()
    finally:
        unmount_all(disk, small)
    assert f"GET /v2/team/app/blobs/{files.layers[0].digest}" not in faulty.paths()
