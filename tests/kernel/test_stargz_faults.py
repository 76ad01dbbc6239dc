"""Lazy images of a registry that goes wrong while they are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from lamina.core.labels import REMOTE
from lamina.core.snapshot import Kind
from lamina.errors import FailedPrecondition
from lamina.lazy.launch import LOG
from lamina.lazy.policy import FILL_SECONDS
from lamina.mount import temp_mount
from lamina.snapshotters.lazy_access import read_access
from lamina.store import Store
from tests.faulty_registry import (
    Fault,
    FaultyRegistry,
    Handler,
    cut,
    dribble,
    faulty_registry,
    hang_up,
    html,
    ignore_range,
    stall,
    status,
    tokens,
)
from tests.fixtures_stargz import (
    GATES,
    annotated,
    noise,
    stargz_layer,
    top,
    worker,
)
from tests.images import ImageFiles, image

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs]

CONTENT = noise(300_000, 5)
PATIENT_SECONDS = 3
"""Long enough for a pull where others use the machine too, and far below what is the default."""
PATIENCE = f"fetching_timeout_sec = {PATIENT_SECONDS}\n"


def wrong_bytes() -> Fault:
    def fault(handler: Handler) -> None:
        data = handler.registry.blobs[handler.path.rpartition("/")[2]]
        handler.serve_range(bytes(byte ^ 1 for byte in data))

    return fault


def half() -> Fault:
    """Give the first half of what is asked for, and say so."""

    def fault(handler: Handler) -> None:
        data = handler.registry.blobs[handler.path.rpartition("/")[2]]
        start = handler.range_start() or 0
        stop = (start + handler.range_stop(len(data)) + 1) // 2
        said = f"bytes {start}-{stop - 1}/{len(data)}"
        handler.answer(206, data[start:stop], {"Content-Range": said})

    return fault


@contextmanager
def mounted(
    open_store: Callable[..., Store],
    registry: FaultyRegistry,
    tmp_path: Path,
    gate: str,
    more: str = "",
    content: bytes = CONTENT,
) -> Iterator[tuple[Path, Path]]:
    """Pull an image lazily; give the mounted tree and the worker's log."""
    files: ImageFiles = image(stargz_layer({"file": content}))
    registry.add_manifest("1", annotated(files))
    for data in files.blobs:
        registry.add_blob(data)
    store = open_store(gate, more=more)
    ref = f"{registry.host}/test:1"
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    with temp_mount(engine.view("look", top(store, ref)), dir=tmp_path, read_only=True) as root:
        yield root, worker(store).directory / LOG
    engine.remove("look")


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(status(500), id="500"),
        pytest.param(status(429, Retry_After="1"), id="429"),
        pytest.param(cut(1000), id="cut"),
        pytest.param(hang_up(), id="hang up"),
        pytest.param(ignore_range(), id="200"),
        pytest.param(half(), id="half"),
    ],
)
def test_what_passes_is_a_wait(
    open_store: Callable[..., Store], tmp_path: Path, gate: str, fault: Fault
) -> None:
    with (
        faulty_registry() as registry,
        mounted(open_store, registry, tmp_path, gate) as (root, _),
    ):
        registry.fault("/blobs/", fault)
        assert (root / "file").read_bytes() == CONTENT
        assert registry.faults == []


def test_a_layer_that_a_registry_holds_back_for_longer_is_unpacked(
    open_store: Callable[..., Store], caplog: pytest.LogCaptureFixture
) -> None:
    files: ImageFiles = image(stargz_layer({"file": CONTENT}))
    with faulty_registry() as registry:
        registry.add_manifest("1", annotated(files))
        for data in files.blobs:
            registry.add_blob(data)
        registry.fault(f"/blobs/{files.layers[0].digest}", status(429, Retry_After="30"))
        store = open_store(more=PATIENCE)
        ref = f"{registry.host}/test:1"
        store.pull(ref, snapshotter="stargz", plain_http=True)
        assert registry.faults == []
    [told] = [line for line in caplog.messages if "is unpacked" in line]
    assert "429" in told
    assert REMOTE not in store.snapshotter("stargz").stat(top(store, ref)).labels


@pytest.mark.fanotify
def test_a_cache_file_that_is_removed_while_it_is_served_is_told_of(
    open_store: Callable[..., Store], tmp_path: Path
) -> None:
    with (
        faulty_registry() as registry,
        mounted(open_store, registry, tmp_path, "fanotify"),
    ):
        engine = open_store("fanotify").snapshotter("stargz")
        [data] = engine.root.glob("snapshots/*/cache/data")
        data.unlink()
        [layer] = [info.name for info in engine.walk() if info.kind is Kind.COMMITTED]
        with pytest.raises(FailedPrecondition) as caught:
            engine.view("again", layer)
        assert "remove the images that have this layer" in caught.value.hint


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(wrong_bytes(), "bytes", id="wrong bytes"),
        pytest.param(status(403), "403", id="403"),
        pytest.param(html(), "text/html", id="a page"),
    ],
)
def test_what_does_not_pass_is_eio_and_a_line_in_the_log(
    open_store: Callable[..., Store], tmp_path: Path, gate: str, fault: Fault, said: str
) -> None:
    with (
        faulty_registry() as registry,
        mounted(open_store, registry, tmp_path, gate) as (root, log),
    ):
        registry.fault("/blobs/", *[fault] * 200)
        with pytest.raises(OSError, match="Input/output error"):
            (root / "file").read_bytes()
        lines = [line for line in log.read_text().splitlines() if "cannot fill" in line]
        assert lines
        assert all(said in line for line in lines)
        registry.faults.clear()
        assert (root / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("gate", GATES)
def test_a_token_that_has_expired_is_asked_for_anew(
    open_store: Callable[..., Store], tmp_path: Path, gate: str
) -> None:
    with faulty_registry() as registry:
        registry.challenge = f'Bearer realm="http://{registry.host}/token",service="test"'
        registry.token = tokens(registry)
        with mounted(open_store, registry, tmp_path, gate) as (root, _):
            with (root / "file").open("rb", buffering=0) as file:
                assert file.read(1) == CONTENT[:1]
            registry.accepted.clear()
            registry.seen.clear()
            assert (root / "file").read_bytes() == CONTENT
            assert "GET /token" in registry.paths()


def read_again(path: Path) -> bytes:
    """Read until it works: after a wait in vain the next reads fail at once for a moment."""
    for _ in range(100):
        with suppress(OSError):
            return path.read_bytes()
        time.sleep(0.1)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("gate", "fault"),
    [
        pytest.param("fanotify", stall(100), marks=pytest.mark.fanotify, id="silence"),
        pytest.param("fuse", dribble(0.02), marks=pytest.mark.fuse, id="a trickle"),
    ],
)
def test_readers_wait_as_long_as_configured(
    open_store: Callable[..., Store], tmp_path: Path, gate: str, fault: Fault
) -> None:
    with (
        faulty_registry() as registry,
        mounted(open_store, registry, tmp_path, gate, PATIENCE) as (root, log),
    ):
        registry.fault("/blobs/", *[fault] * 200)
        began = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            (root / "file").read_bytes()
        waited = time.monotonic() - began  # the kernel reads it in parts, and again
        assert PATIENT_SECONDS <= waited < FILL_SECONDS / 2
        assert "cannot fill" in log.read_text()
        [access] = log.parent.parent.glob("snapshots/*/registry.json")
        assert read_access(access.parent).fetching_seconds == PATIENT_SECONDS
        registry.faults.clear()
        assert read_again(root / "file") == CONTENT


@pytest.mark.parametrize("gate", GATES)
def test_without_a_registry_reads_fail(
    open_store: Callable[..., Store], tmp_path: Path, gate: str
) -> None:
    with ExitStack() as running:
        registry = running.enter_context(faulty_registry())
        with mounted(open_store, registry, tmp_path, gate, PATIENCE) as (root, log):
            with (root / "file").open("rb", buffering=0) as file:
                assert file.read(1) == CONTENT[:1]
            registry.fault("/", *[hang_up()] * 200)  # connections that are open already
            running.close()
            with pytest.raises(OSError, match="Input/output error"):
                (root / "file").read_bytes()
            assert "cannot fill" in log.read_text()


@pytest.mark.parametrize("gate", GATES)
def test_a_place_that_has_expired_is_asked_for_anew(
    open_store: Callable[..., Store], tmp_path: Path, gate: str
) -> None:
    content = noise(3_000_000, 6)
    with faulty_registry() as registry:
        left: list[int] = []

        def redirect(handler: Handler) -> None:
            left.append(1)
            digest = handler.path.rpartition("/")[2]
            port = registry.host.rpartition(":")[2]
            place = f"http://localhost:{port}/signed/blobs/{digest}?{len(left) - 1}"
            handler.answer(307, b"", {"Location": place})

        def signed(handler: Handler) -> None:
            number = int(handler.path.rpartition("?")[2])
            left[number] -= 1
            if left[number] < 0:
                handler.answer(403, b"")
            else:
                handler.serve()

        with mounted(open_store, registry, tmp_path, gate, content=content) as (root, _):
            registry.fault("/v2/test/blobs/", *[redirect] * 200)
            registry.fault("/signed/", *[signed] * 200)
            with (root / "file").open("rb", buffering=0) as file:
                assert file.read(1) == content[:1]
            assert (root / "file").read_bytes() == content
            assert len(left) > 1
            assert min(left) < 0
