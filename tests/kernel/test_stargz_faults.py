"""Lazy images of a registry that goes wrong while they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.lazy.launch import LOG
from lamina.mount import temp_mount
from lamina.store import Store
from tests.faulty_registry import (
    Fault,
    FaultyRegistry,
    Handler,
    cut,
    faulty_registry,
    hang_up,
    html,
    ignore_range,
    status,
    tokens,
)
from tests.images import ImageFiles, image
from tests.kernel.test_stargz import (
    GATES,
    annotated,
    noise,
    open_store,
    stargz_layer,
    top,
    worker,
)

__all__ = ["open_store"]
pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs]

CONTENT = noise(300_000, 5)


def wrong_bytes() -> Fault:
    def fault(handler: Handler) -> None:
        data = handler.registry.blobs[handler.path.rpartition("/")[2]]
        handler.serve_range(bytes(byte ^ 1 for byte in data))

    return fault


@contextmanager
def mounted(
    open_store: Callable[..., Store], registry: FaultyRegistry, tmp_path: Path, gate: str
) -> Iterator[tuple[Path, Path]]:
    """Pull an image lazily; give the mounted tree and the worker's log."""
    files: ImageFiles = image(stargz_layer({"file": CONTENT}))
    registry.add_manifest("1", annotated(files))
    for data in files.blobs:
        registry.add_blob(data)
    store = open_store(gate)
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
