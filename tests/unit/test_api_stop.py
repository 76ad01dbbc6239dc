"""The server's end, as a client sees it frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.api.http2 import (
    ACK,
    GOAWAY,
    INITIAL_WINDOW_SIZE,
    MAX_STREAM,
    PING,
    RST_STREAM,
    ErrorCode,
    frame,
    parse_goaway,
    parse_word,
    window_update,
)
from lamina.api.message import pack
from tests.grpc_server import WAIT, Handlers, Serving, serving
from tests.raw_http2 import Raw, request


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
def server(tmp_path: Path, handlers: Handlers) -> Iterator[Serving]:
    with serving(tmp_path / "s", handlers.methods(), grace_seconds=WAIT) as running:
        yield running
        handlers.release.set()


@pytest.fixture
def raw(server: Serving) -> Iterator[Raw]:
    with Raw(server.path) as client:
        yield client.greet()


def _first_goaway(raw: Raw) -> bytes:
    """Return the payload of the PING that comes after it."""
    last, code, _ = parse_goaway(raw.wait_for(GOAWAY).payload)
    assert (last, code) == (MAX_STREAM, ErrorCode.NO_ERROR)
    return raw.wait_for(PING).payload


def test_idle_client(server: Serving, raw: Raw) -> None:
    raw.send(request(1))
    raw.answer(1)
    server.begin_stop()
    raw.send(frame(PING, ACK, 0, _first_goaway(raw)))
    assert raw.goaway()[:2] == (1, ErrorCode.NO_ERROR)
    assert raw.is_closed()
    server.join()


def test_call_that_was_on_its_way_is_answered(server: Serving, raw: Raw) -> None:
    server.begin_stop()
    ping = _first_goaway(raw)
    raw.send(request(1) + frame(PING, ACK, 0, ping) + request(3))
    assert raw.goaway()[0] == 1
    assert raw.is_closed()


def test_running_call_ends_and_later_ones_are_refused(
    server: Serving, raw: Raw, handlers: Handlers
) -> None:
    raw.send(request(1, "/test/Hang"))
    assert handlers.started.wait(WAIT)
    server.begin_stop()
    raw.send(frame(PING, ACK, 0, _first_goaway(raw)))
    assert raw.goaway()[0] == 1
    raw.send(request(3))
    refused = raw.wait_for(RST_STREAM, stream=3)
    assert parse_word(refused.payload) == ErrorCode.REFUSED_STREAM
    handlers.release.set()
    assert raw.answer(1)[0] == pack(b"hello")
    assert raw.is_closed()
    server.join()


def test_response_is_sent_to_its_end(server: Serving) -> None:
    with Raw(server.path) as raw:
        raw.greet({INITIAL_WINDOW_SIZE: 10})
        raw.send(request(1, message=bytes(95)))
        raw.ping()
        server.begin_stop()
        raw.send(frame(PING, ACK, 0, _first_goaway(raw)))
        raw.goaway()
        raw.send(window_update(1, 90))
        assert len(raw.answer(1)[0]) == 90
        assert raw.is_closed()


def test_idle_client_that_does_not_listen(server: Serving, raw: Raw) -> None:
    raw.ping()
    server.stop()
    assert raw.goaway()[0] == MAX_STREAM
    assert raw.goaway()[0] == 0
    assert raw.is_closed()


def test_client_that_has_not_introduced_itself(server: Serving) -> None:
    with Raw(server.path) as raw:
        server.begin_stop()
        assert raw.is_closed()
    server.join()


def test_client_that_never_answers(tmp_path: Path, handlers: Handlers) -> None:
    with (
        serving(tmp_path / "t", handlers.methods(), grace_seconds=0.2) as server,
        Raw(server.path) as raw,
    ):
        raw.greet().send(request(1, "/test/Wait"))
        assert handlers.started.wait(WAIT)
        server.stop()
        assert raw.status(1) == "14"
        assert raw.is_closed()
    assert handlers.ended.is_set()


def test_call_that_ignores_its_end(
    tmp_path: Path,
    handlers: Handlers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("lamina.api.server._UNDO_SECONDS", 0.2)
    with (
        serving(tmp_path / "t", handlers.methods(), grace_seconds=0.1) as server,
        Raw(server.path) as raw,
    ):
        raw.greet().send(request(1, "/test/Hang"))
        assert handlers.started.wait(WAIT)
        server.stop()
    assert "leaving 1 calls unfinished" in caplog.text
    handlers.release.set()  # and when it ends, there is nobody to tell
    assert handlers.ended.wait(WAIT)
