"""A Prepare that copies for long, and whose client gives up: nothing of it stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from lamina.api.channel import Channel
from lamina.api.client import RemoteSnapshotter
from lamina.api.service import SERVICE, snapshots_methods
from lamina.api.wire import snapshots_pb2 as pb
from lamina.errors import DeadlineExceeded, NotFound
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.native.driver import NativeDriver
from tests.grpc_server import Serving, eventually, serving

_DIRECTORIES, _FILES = 40, 100


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


@pytest.fixture
def server(tmp_path: Path, storage: Path) -> Iterator[Serving]:
    """Serves `native` with one committed snapshot that takes a while to copy, number 1."""
    with Engine("native", NativeDriver(tmp_path), tmp_path) as engine:
        engine.prepare("base-active")
        for number in range(_DIRECTORIES):
            directory = storage / "1" / str(number)
            directory.mkdir()
            for name in range(_FILES):
                (directory / str(name)).write_bytes(bytes(4000))
        engine.commit("base", "base-active")
        methods = snapshots_methods(lambda name: engine, lambda *call: None)
        with serving(tmp_path / "s", methods) as running:
            yield running


def _copies(storage: Path) -> list[str]:
    return [path.name for path in storage.iterdir() if path.name != "1"]


def _nothing_is_left(server: Serving, storage: Path) -> bool:
    with Channel(server.path) as channel, pytest.raises(NotFound):
        RemoteSnapshotter(channel, "native").stat("copy")
    return not _copies(storage)


def test_cancelled_prepare(server: Serving, storage: Path) -> None:
    request = pb.PrepareSnapshotRequest(snapshotter="native", key="copy", parent="base")
    with grpc.insecure_channel(f"unix:{server.path}") as client:
        prepare: grpc.UnaryUnaryMultiCallable[bytes, bytes] = client.unary_unary(
            f"/{SERVICE}/Prepare"
        )
        call = prepare.future(request.SerializeToString())
        assert eventually(lambda: bool(_copies(storage)))
        call.cancel()
        assert call.code() == grpc.StatusCode.CANCELLED
    assert eventually(lambda: not _copies(storage))
    assert eventually(lambda: _nothing_is_left(server, storage))


def test_prepare_that_takes_too_long(server: Serving, storage: Path) -> None:
    with (
        Channel(server.path, timeout=0.02) as channel,
        pytest.raises(DeadlineExceeded),
    ):
        RemoteSnapshotter(channel, "native").prepare("copy", "base")
    assert eventually(lambda: not _copies(storage))
    assert eventually(lambda: _nothing_is_left(server, storage))


def test_prepare_that_is_given_time(server: Serving, storage: Path) -> None:
    with Channel(server.path) as channel:
        RemoteSnapshotter(channel, "native").prepare("copy", "base")
    (copy,) = _copies(storage)
    assert len(list((storage / copy).iterdir())) == _DIRECTORIES
