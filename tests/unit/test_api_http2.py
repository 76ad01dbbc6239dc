"""Frames, header blocks and messages, without a connection."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from lamina.api.channel import encode_timeout
from lamina.api.headers import HeaderDecoder, http_status, literal
from lamina.api.http2 import (
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PRIORITISED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFault,
    Frame,
    FrameReader,
    frame,
    goaway,
    parse_goaway,
    parse_settings,
    settings,
)
from lamina.api.message import MESSAGE_LIMIT, pack, unpack
from lamina.api.request import Malformed, RequestDecoder
from lamina.api.window import ReceiveWindow
from lamina.errors import Internal, NotImplementedHere, ResourceExhausted

FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a/B"),
    ("content-type", "application/grpc"),
]


def read(data: bytes) -> list[Frame]:
    return list(FrameReader().feed(data))


@given(st.lists(st.integers(0, 60), max_size=12))
def test_frames_come_out_whole_however_they_arrive(cuts: list[int]) -> None:
    data = (
        frame(SETTINGS, 0, 0)
        + frame(HEADERS, 0, 1, b"ab")
        + frame(CONTINUATION, END_HEADERS, 1, b"cd")
        + frame(DATA, END_STREAM, 1, b"hello")
    )
    reader, position = FrameReader(), 0
    found: list[Frame] = []
    for cut in [*sorted(cuts), len(data)]:
        found += reader.feed(data[position:cut])
        position = max(position, cut)
    assert found == read(data)
    assert [each.payload for each in found] == [b"", b"abcd", b"hello"]


def test_padding_and_priority_are_taken_off() -> None:
    flags = PADDED | PRIORITISED | END_HEADERS
    headers, data = read(
        frame(HEADERS, flags, 1, b"\3" + b"prior" + b"block" + bytes(3))
        + frame(DATA, PADDED, 1, b"\2hi\0\0")
    )
    assert (headers.payload, data.payload, data.size) == (b"block", b"hi", 5)


@pytest.mark.parametrize(
    "data",
    [
        frame(DATA, 0, 1, bytes(16_385)),
        frame(DATA, 0, 0, b"x"),
        frame(HEADERS, END_HEADERS, 0, b"x"),
        frame(DATA, PADDED, 1, b""),
        frame(DATA, PADDED, 1, b"\2x"),
        frame(HEADERS, PRIORITISED | END_HEADERS, 1, b"four"),
        frame(PING, 0, 0, b"short"),
        frame(PING, 0, 1, bytes(8)),
        frame(SETTINGS, 0, 1),
        frame(RST_STREAM, 0, 0, bytes(4)),
        frame(RST_STREAM, 0, 1, bytes(5)),
        frame(WINDOW_UPDATE, 0, 1, bytes(3)),
        frame(PRIORITY, 0, 0, bytes(5)),
        frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)),
        frame(CONTINUATION, END_HEADERS, 1, b""),
        frame(HEADERS, 0, 1) + frame(DATA, 0, 1),
        frame(HEADERS, 0, 1) + frame(CONTINUATION, END_HEADERS, 3),
        frame(HEADERS, 0, 1) + frame(77, 0, 1),
        frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 10_000,
        frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1, bytes(16_000)) * 5,
    ],
)
def test_what_no_peer_may_send(data: bytes) -> None:
    with pytest.raises(ConnectionFault):
        read(data)


def test_frames_of_unknown_types_are_skipped() -> None:
    assert read(frame(77, 255, 9, b"what") + frame(PRIORITY, 0, 3, bytes(5))) == []


@pytest.mark.parametrize(
    "values", [{INITIAL_WINDOW_SIZE: 2**31}, {MAX_FRAME_SIZE: 100}, {ENABLE_PUSH: 2}]
)
def test_settings_that_make_no_sense(values: dict[int, int]) -> None:
    payload = settings(values)[9:]
    with pytest.raises(ConnectionFault):
        list(parse_settings(payload))


def test_settings_that_nobody_knows() -> None:
    assert list(parse_settings(settings({0xABCD: 7})[9:])) == [(0xABCD, 7)]
    with pytest.raises(ConnectionFault):
        list(parse_settings(b"12345"))


def test_goaway() -> None:
    assert parse_goaway(goaway(7, 11, "calm")[9:]) == (7, 11, "calm")
    with pytest.raises(ConnectionFault):
        parse_goaway(b"short")


@given(st.binary(max_size=50).map(bytes.lower), st.integers(0, 40_000))
def test_literals_are_hpack(name: bytes, size: int) -> None:
    value = bytes(size)
    decoded = list(Decoder(2**20).decode(literal(name, value), raw=True))
    assert decoded == [(name, value)]


@pytest.mark.parametrize("status", [200, 400, 415])
def test_http_status(status: int) -> None:
    (field,) = Decoder().decode(http_status(status), raw=True)
    assert tuple(field) == (b":status", b"%d" % status)


def test_header_bomb() -> None:
    encoder = Encoder()
    bomb = encoder.encode([("x", "y" * 4000)])
    bomb += encoder.encode([("x", "y" * 4000)]) * 1000
    with pytest.raises(ConnectionFault):
        HeaderDecoder().decode(bomb)


@pytest.mark.parametrize(
    "block", [b"\xff\xff\xff\xff\xff\xff\xff", b"\x40", b"\xc0", b"\x3f\xff\xff\x7f"]
)
def test_what_is_no_hpack(block: bytes) -> None:
    with pytest.raises(ConnectionFault):
        HeaderDecoder().decode(block)


def test_heads_mean_what_the_table_says_now() -> None:
    encoder, decoder = Encoder(), RequestDecoder()
    for name in ("one", "two", "one", "one"):
        request = decoder.decode(encoder.encode([*FIELDS, ("x-name", name)]))
        assert request.metadata["x-name"] == name
        # The table moves on: the bytes of the first block mean something else each time.
        decoder.decode(encoder.encode([*FIELDS, ("x-other", name * 3)]))
        again = decoder.decode(encoder.encode([*FIELDS, ("x-name", name)]))
        assert again.metadata == request.metadata


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60))
def test_heads_of_any_order(names: list[str]) -> None:
    encoder, decoder = Encoder(), RequestDecoder()
    encoder.header_table_size = 200  # so that fields leave the table again
    for name in names:
        request = decoder.decode(encoder.encode([*FIELDS, ("x-name", name), ("x-more", name)]))
        assert request.metadata["x-name"] == request.metadata["x-more"] == name


@pytest.mark.parametrize(
    "fields",
    [
        FIELDS[1:],
        FIELDS[:2],
        [*FIELDS, (":path", "/late")],
        [FIELDS[0], *FIELDS],
        [(":status", "200"), *FIELDS],
        [*FIELDS, ("Upper", "case")],
        [*FIELDS, ("connection", "close")],
    ],
)
def test_heads_that_http2_forbids(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(Malformed):
        RequestDecoder().decode(Encoder().encode(fields))


def _head(**changes: str) -> bytes:
    fields = dict(FIELDS)
    fields[":method"] = changes.pop("method", "POST")
    for name, value in changes.items():
        fields[name.replace("_", "-")] = value
    return Encoder().encode(list(fields.items()))


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (_head(method="GET"), 405),
        (_head(content_type="text/html"), 415),
        (_head(grpc_timeout="soon"), 400),
        (_head(grpc_timeout="123456789S"), 400),
        (_head(grpc_timeout="-1S"), 400),
    ],
)
def test_heads_that_are_no_grpc(block: bytes, status: int) -> None:
    refusal = RequestDecoder().decode(block).refusal
    assert refusal is not None
    assert refusal.http_status == status


@pytest.mark.parametrize(
    ("text", "seconds"), [("1H", 3600), ("2M", 120), ("3S", 3), ("4m", 0.004), ("0n", 0)]
)
def test_timeouts(text: str, seconds: float) -> None:
    assert RequestDecoder().decode(_head(grpc_timeout=text)).timeout == seconds


@given(st.floats(0, 1e9))
def test_timeouts_are_sent_as_exactly_as_possible(seconds: float) -> None:
    request = RequestDecoder().decode(_head(grpc_timeout=encode_timeout(seconds).decode()))
    assert request.timeout is not None
    assert seconds == pytest.approx(request.timeout, rel=0.01, abs=2e-6) or seconds > 99_999_999


def test_metadata_of_one_name_is_joined() -> None:
    block = Encoder().encode([*FIELDS, ("x", "1"), ("x", "2")])
    assert RequestDecoder().decode(block).metadata["x"] == "1,2"


@given(st.binary(max_size=300))
def test_messages(message: bytes) -> None:
    assert unpack(pack(message), "") == message
    for end in range(len(message) + 5):
        with pytest.raises(Internal):
            unpack(pack(message)[:end], "")


def test_messages_that_are_not_taken() -> None:
    with pytest.raises(NotImplementedHere):
        unpack(b"\1\0\0\0\1x", "gzip")
    with pytest.raises(Internal):
        unpack(b"\1\0\0\0\1x", "identity")
    with pytest.raises(Internal):
        unpack(pack(b"one") + pack(b"two"), "")
    with pytest.raises(ResourceExhausted):
        unpack(b"\0" + (MESSAGE_LIMIT + 1).to_bytes(4, "big"), "")


def test_receive_window() -> None:
    window = ReceiveWindow(100)
    assert [window.take(size) for size in (40, 9, 1, 100)] == [0, 0, 50, 100]
    with pytest.raises(ConnectionFault):
        window.take(101)
