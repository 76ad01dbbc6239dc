"""The server against clients that break rules, or mean harm."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hpack import Encoder
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lamina.api import connection, session, stream
from lamina.api.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    ErrorCode,
    frame,
    parse_word,
    rst_stream,
    settings,
    window_update,
)
from lamina.api.message import pack
from tests.grpc_server import WAIT, Handlers, Serving, eventually, serving
from tests.raw_http2 import Raw, head, request

FAST = hypothesis_settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
def server(tmp_path: Path, handlers: Handlers) -> Iterator[Serving]:
    with serving(tmp_path / "s", handlers.methods()) as running:
        yield running
        handlers.release.set()


@pytest.fixture
def raw(server: Serving) -> Iterator[Raw]:
    with Raw(server.path) as client:
        yield client.greet()


def works(server: Serving) -> bool:
    with Raw(server.path) as client:
        client.greet().send(request(1))
        return client.answer(1)[0] == pack(b"hello")


# What is allowed


def test_answer_has_what_grpc_asks_for(raw: Raw) -> None:
    raw.send(request(1))
    data, fields = raw.answer(1)
    assert data == pack(b"hello")
    assert fields[":status"] == "200"
    assert fields["content-type"] == "application/grpc"
    assert fields["grpc-status"] == "0"


def test_error_is_trailers_only(raw: Raw) -> None:
    raw.send(request(1, "/test/Fail"))
    headers = raw.wait_for(HEADERS)
    assert headers.flags & END_STREAM
    assert raw.fields(headers.payload)[":status"] == "200"


def test_request_in_many_pieces(raw: Raw) -> None:
    block = head()
    frames = [frame(HEADERS, 0, 1, block[:5]), frame(CONTINUATION, 0, 1, b"")]
    frames += [frame(CONTINUATION, END_HEADERS, 1, block[5:])]
    frames += [frame(DATA, 0, 1, bytes([byte])) for byte in pack(b"hello")]
    frames += [frame(DATA, END_STREAM, 1)]
    for byte in b"".join(frames):
        raw.send(bytes([byte]))
    assert raw.answer(1)[0] == pack(b"hello")


def test_request_with_trailers(raw: Raw) -> None:
    raw.send(frame(HEADERS, END_HEADERS, 1, head()) + frame(DATA, 0, 1, pack(b"hi")))
    raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, Encoder().encode([("x", "y")])))
    assert raw.answer(1)[0] == pack(b"hi")


def test_trailers_of_a_request_that_is_answered_already(raw: Raw) -> None:
    raw.send(frame(HEADERS, END_HEADERS, 1, head("/test/Nothing")))
    assert raw.status(1) == "12"
    raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, Encoder().encode([("x", "y")])))
    raw.send(request(3))
    assert raw.status(3) == "0"


def test_padding_counts_for_flow_control(raw: Raw) -> None:
    raw.send(frame(HEADERS, END_HEADERS, 1, head("/test/Size")))
    for _ in range(70):
        raw.send(frame(DATA, 0x8, 1, bytes([255]) + bytes(255)))
    raw.send(frame(DATA, END_STREAM, 1, pack(b"abc")))
    assert raw.answer(1)[0] == pack(b"3")


def test_ping_and_settings_are_acknowledged(raw: Raw) -> None:
    raw.send(frame(PING, 0, 0, b"abcdefgh") + settings({MAX_FRAME_SIZE: 20_000}))
    assert raw.wait_for(PING, flags=ACK).payload == b"abcdefgh"
    raw.wait_for(SETTINGS, flags=ACK)


def test_small_windows(server: Serving) -> None:
    with Raw(server.path) as raw:
        raw.greet({INITIAL_WINDOW_SIZE: 10})
        raw.send(request(1, message=b"0123456789"))
        assert raw.wait_for(DATA).payload == pack(b"0123456789")[:10]
        raw.send(window_update(1, 2))
        assert raw.wait_for(DATA).payload == b"56"
        raw.send(window_update(1, 100))
        assert raw.answer(1)[0] == b"789"


def test_window_that_shrinks_below_nothing(server: Serving) -> None:
    with Raw(server.path) as raw:
        raw.greet({INITIAL_WINDOW_SIZE: 10})
        raw.send(request(1, message=bytes(95)))
        assert len(raw.wait_for(DATA).payload) == 10
        raw.send(settings({INITIAL_WINDOW_SIZE: 0}))  # minus ten are left
        raw.send(window_update(1, 10))
        raw.ping()
        raw.send(settings({INITIAL_WINDOW_SIZE: 90}))
        assert len(raw.answer(1)[0]) == 90


def test_larger_window_is_acknowledged_before_it_is_used(server: Serving) -> None:
    with Raw(server.path) as raw:
        raw.greet({INITIAL_WINDOW_SIZE: 10})
        raw.send(request(1, message=bytes(95)))
        assert len(raw.wait_for(DATA).payload) == 10
        raw.send(settings({INITIAL_WINDOW_SIZE: 30}))
        frames = raw.frames()
        first, second = next(frames), next(frames)
        assert (first.type, first.flags) == (SETTINGS, ACK)
        assert (second.type, len(second.payload)) == (DATA, 20)


def test_connection_window_is_shared_fairly(server: Serving) -> None:
    with Raw(server.path) as raw:
        raw.greet({INITIAL_WINDOW_SIZE: 2**31 - 1})
        raw.send(b"".join(request(id, "/test/Repeat", b"1 100000") for id in (1, 3)))
        received = {1: 0, 3: 0}
        while sum(received.values()) < 65_535:
            each = raw.wait_for(DATA)
            received[each.stream] += each.size
        raw.ping()
        raw.send(request(5, "/test/Fail"))
        assert raw.status(5) == "5"  # what is no DATA does not wait
        raw.send(window_update(0, 200_000))
        while sum(received.values()) < 200_010:
            each = raw.wait_for(DATA)
            received[each.stream] += each.size
        assert received == {1: 100_005, 3: 100_005}


def test_larger_frames_are_used(server: Serving) -> None:
    with Raw(server.path) as raw:
        raw.greet({MAX_FRAME_SIZE: 60_000})
        raw.send(request(1, "/test/Repeat", b"1 50000"))
        raw.socket.settimeout(1)
        received = b""
        while len(received) < 50_000:
            received += raw.socket.recv(65536)
        assert frame(DATA, 0, 1, pack(bytes(50_000))) in received


def test_smaller_header_table_is_acknowledged(server: Serving) -> None:
    with Raw(server.path) as raw:
        raw.greet({HEADER_TABLE_SIZE: 0})
        raw.send(request(1))
        assert raw.wait_for(HEADERS).payload.startswith(b"\x20\x88")
        raw.send(request(3))
        assert raw.wait_for(HEADERS, stream=3).payload.startswith(b"\x88")


def test_cancelled_call_sends_nothing_more(raw: Raw, handlers: Handlers) -> None:
    raw.send(request(1, "/test/Endless"))
    raw.wait_for(DATA)
    raw.send(rst_stream(1, ErrorCode.CANCEL))
    assert handlers.ended.wait(WAIT)
    raw.send(window_update(1, 1000) + frame(DATA, 0, 1, b"late") + request(3))
    assert raw.answer(3)[0] == pack(b"hello")


# What is no gRPC


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"content_type": "text/html"}, "415", "3"),
        ({"grpc_timeout": "forever"}, "400", "13"),
    ],
)
def test_refused_requests(raw: Raw, fields: dict[str, str], status: str, code: str) -> None:
    raw.send(frame(HEADERS, END_HEADERS, 1, head(**fields)))
    answer = raw.answer(1)[1]
    assert (answer[":status"], answer["grpc-status"]) == (status, code)
    # The rest of the request is not wanted.
    assert parse_word(raw.wait_for(RST_STREAM).payload) == ErrorCode.NO_ERROR
    raw.send(frame(DATA, END_STREAM, 1, pack(b"")) + request(3))
    assert raw.status(3) == "0"


def test_malformed_requests_are_reset(raw: Raw) -> None:
    raw.send(frame(HEADERS, END_HEADERS, 1, Encoder().encode([(":method", "POST")])))
    assert parse_word(raw.wait_for(RST_STREAM, stream=1).payload) == ErrorCode.PROTOCOL_ERROR
    raw.send(request(3))
    assert raw.status(3) == "0"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0",
        pack(b"abc")[:-1],
        pack(b"one") + pack(b"two"),
        b"\1" + pack(b"x")[1:],
        b"\2" * 6,
    ],
)
def test_bad_messages(raw: Raw, body: bytes) -> None:
    raw.send(frame(HEADERS, END_HEADERS, 1, head()) + frame(DATA, END_STREAM, 1, body))
    assert raw.status(1) == "13"


def test_request_without_a_message(raw: Raw) -> None:
    raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, head()))
    assert raw.status(1) == "13"


# What ends the connection


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 2, head()), ErrorCode.PROTOCOL_ERROR),
        (request(1) + request(1), ErrorCode.PROTOCOL_ERROR),
        (request(5) + request(3), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\xff" * 9), ErrorCode.COMPRESSION_ERROR),
        (frame(DATA, 0, 1, bytes(20_000)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(HEADERS, 0, 1, head()) + frame(PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (
            frame(HEADERS, 0, 1, head()) + frame(CONTINUATION, 0, 1, bytes(16_000)) * 9,
            ErrorCode.ENHANCE_YOUR_CALM,
        ),
        (rst_stream(1, 8), ErrorCode.PROTOCOL_ERROR),
        (window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
        (window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (settings({INITIAL_WINDOW_SIZE: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
        (settings({MAX_FRAME_SIZE: 1}), ErrorCode.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_broken_rules(
    server: Serving,
    raw: Raw,
    data: bytes,
    code: ErrorCode,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        raw.send(data)
        assert raw.goaway()[1] == code
        assert raw.is_closed()
    assert [record.getMessage() for record in caplog.records if code.name in record.getMessage()]
    assert len(caplog.records) == 1
    assert works(server)


@pytest.mark.parametrize(
    ("increment", "code"),
    [(0, ErrorCode.PROTOCOL_ERROR), (2**31 - 1, ErrorCode.FLOW_CONTROL_ERROR)],
)
def test_broken_rules_of_one_stream(
    raw: Raw, handlers: Handlers, increment: int, code: ErrorCode
) -> None:
    raw.send(request(1, "/test/Wait"))
    assert handlers.started.wait(WAIT)
    raw.send(window_update(1, increment))
    assert parse_word(raw.wait_for(RST_STREAM, stream=1).payload) == code
    assert handlers.ended.wait(WAIT)
    raw.send(request(3))
    assert raw.status(3) == "0"


def test_data_after_the_end(raw: Raw, handlers: Handlers) -> None:
    raw.send(request(1, "/test/Wait") + frame(DATA, 0, 1, b"more"))
    assert parse_word(raw.wait_for(RST_STREAM, stream=1).payload) == ErrorCode.STREAM_CLOSED


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        PREFACE[:-1] + b"x",
        PREFACE + frame(PING, 0, 0, bytes(8)),
        PREFACE + request(1),
    ],
)
def test_other_protocols(
    server: Serving, greeting: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with Raw(server.path) as raw:
        raw.send(greeting)
        assert raw.is_closed()
    assert len(caplog.records) == 1
    assert works(server)


@pytest.mark.parametrize("greeting", [b"", PREFACE[:10], PREFACE, PREFACE + b"\0\0"])
def test_client_that_does_not_introduce_itself(
    tmp_path: Path, handlers: Handlers, greeting: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PREFACE_SECONDS", 0.2)
    with serving(tmp_path / "t", handlers.methods()) as server, Raw(server.path) as raw:
        raw.send(greeting)
        before = time.monotonic()
        assert raw.is_closed()
        assert 0.1 < time.monotonic() - before < 5
        with Raw(server.path) as other:
            other.greet()
            time.sleep(0.4)
            other.send(request(1))
            assert other.status(1) == "0"


# What wants to use us up


def test_more_streams_than_allowed(raw: Raw) -> None:
    opened = b"".join(
        frame(HEADERS, END_HEADERS, 2 * number + 1, head("/test/Echo"))
        for number in range(session.STREAMS + 1)
    )
    raw.send(opened)
    refused = raw.wait_for(RST_STREAM)
    assert refused.stream == 2 * session.STREAMS + 1
    assert parse_word(refused.payload) == ErrorCode.REFUSED_STREAM
    raw.send(frame(DATA, END_STREAM, 1, pack(b"x")))
    assert raw.status(1) == "0"


def test_rapid_reset(server: Serving, raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    def flood() -> None:
        try:
            for number in range(20_000):
                id = 2 * number + 1
                raw.send(request(id, "/test/Echo") + rst_stream(id, ErrorCode.CANCEL))
        except OSError:
            pass

    thread = threading.Thread(target=flood)
    thread.start()
    assert raw.goaway()[1] == ErrorCode.ENHANCE_YOUR_CALM
    thread.join()
    assert len(caplog.records) == 1
    assert works(server)


def test_resets_now_and_then_are_fine(raw: Raw, handlers: Handlers) -> None:
    for number in range(0, 3 * session.RESETS, 2):
        id = 2 * number + 1
        raw.send(frame(HEADERS, END_HEADERS, id, head()) + rst_stream(id, ErrorCode.CANCEL))
        raw.send(request(id + 2, "/test/Inline"))
        assert raw.status(id + 2) == "0"


def test_abandoned_calls_count_as_long_as_they_run(
    tmp_path: Path, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STREAMS", 3)
    with serving(tmp_path / "t", handlers.methods()) as server, Raw(server.path) as raw:
        raw.greet()
        for id in (1, 3, 5):
            raw.send(request(id, "/test/Hang") + rst_stream(id, ErrorCode.CANCEL))
        assert handlers.started.wait(WAIT)
        raw.send(request(7))
        refused = raw.wait_for(RST_STREAM, stream=7)
        assert parse_word(refused.payload) == ErrorCode.REFUSED_STREAM
        handlers.release.set()
        assert handlers.ended.wait(WAIT)
        ids = itertools.count(9, 2)
        assert eventually(lambda: _is_taken(raw, next(ids)))


def _is_taken(raw: Raw, id: int) -> bool:
    raw.send(request(id))
    return next(each for each in raw.frames() if each.stream == id).type == HEADERS


def test_client_that_does_not_read(raw: Raw, handlers: Handlers) -> None:
    """Its requests are not read either, so what it can make us remember is bounded."""
    raw.socket.settimeout(0.5)
    sent = 0
    with pytest.raises(TimeoutError):
        for number in range(200_000):
            raw.send(request(2 * number + 1, "/test/Inline", bytes(100)))
            sent += 1
    assert 100 < sent < 50_000
    raw.socket.settimeout(WAIT)
    assert raw.status(1) == "0"


def test_client_that_does_not_read_and_leaves(raw: Raw, handlers: Handlers) -> None:
    raw.send(request(1, "/test/Wait"))
    raw.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        for number in range(1, 200_000):
            raw.send(request(2 * number + 1, "/test/Inline", bytes(1000)))
    raw.socket.close()
    assert handlers.ended.wait(WAIT)


def test_client_that_takes_nothing_is_given_up(
    tmp_path: Path, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_STALL", 0.2)
    with serving(tmp_path / "t", handlers.methods()) as server, Raw(server.path) as raw:
        raw.greet({INITIAL_WINDOW_SIZE: 0})
        raw.send(request(1, "/test/Endless"))
        assert handlers.ended.wait(WAIT)
        assert handlers.sent < 10


def test_too_much_at_once(
    tmp_path: Path, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.api.dispatch._HELD", 100_000)
    with serving(tmp_path / "t", handlers.methods()) as server, Raw(server.path) as raw:
        raw.greet()
        for id in range(1, 21, 2):
            raw.send(frame(HEADERS, END_HEADERS, id, head()) + frame(DATA, 0, id, bytes(16_000)))
        assert raw.fields(raw.wait_for(HEADERS).payload)["grpc-status"] == "8"
        raw.send(b"".join(rst_stream(id, ErrorCode.CANCEL) for id in range(1, 13, 2)))
        raw.send(request(21))
        assert raw.status(21) == "0"


def test_empty_frames(raw: Raw) -> None:
    raw.send(frame(HEADERS, END_HEADERS, 1, head()))
    raw.send(frame(DATA, 0, 1) * 100_000)
    raw.send(frame(DATA, END_STREAM, 1, pack(b"x")))
    assert raw.answer(1)[0] == pack(b"x")


def test_too_many_connections(
    tmp_path: Path, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.api.dispatch._CONNECTIONS", 2)
    with serving(tmp_path / "t", handlers.methods()) as server:
        with Raw(server.path) as one, Raw(server.path) as two:
            one.greet()
            two.greet()
            with Raw(server.path) as three:
                assert three.is_closed()
        assert eventually(lambda: works(server))


# Random bytes


@FAST
@given(data=st.binary(max_size=2000))
def test_random_bytes(server: Serving, data: bytes) -> None:
    _survives(server, PREFACE + settings({}) + data)


_frames = st.builds(
    frame,
    st.integers(0, 10),
    st.integers(0, 255) | st.sampled_from([0, 1, 4, 5]),
    st.sampled_from([0, 1, 1, 3, 5, 2, 2**31 - 1]),
    st.binary(max_size=40) | st.just(head()) | st.just(pack(b"x")),
)


@FAST
@given(data=st.lists(_frames | st.just(request(1)) | st.just(request(3, "/test/Fail"))))
def test_random_frames(server: Serving, data: list[bytes]) -> None:
    _survives(server, PREFACE + settings({}) + b"".join(data))


def _survives(server: Serving, data: bytes) -> None:
    with Raw(server.path) as raw:
        raw.send(data)
        raw.socket.shutdown(socket.SHUT_WR)
        while raw.socket.recv(65536):
            pass
    assert works(server)
