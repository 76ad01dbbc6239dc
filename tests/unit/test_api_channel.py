"""The client: against our server, grpcio's, and servers that misbehave."""

from __future__ import annotations

import concurrent.futures
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from lamina.api import channel as channel_module
from lamina.api.channel import Channel
from lamina.api.headers import STATUS_200, http_status, literal
from lamina.api.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PUSH_PROMISE,
    ErrorCode,
    frame,
    goaway,
    rst_stream,
    settings,
)
from lamina.api.message import pack
from lamina.api.server import Call
from lamina.core.cancel import CancelToken
from lamina.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    LaminaError,
    NotFound,
    NotImplementedHere,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from tests.grpc_server import WAIT, Handlers, Serving, eventually, serving

MIB = 1024 * 1024


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
def server(tmp_path: Path, handlers: Handlers) -> Iterator[Serving]:
    with serving(tmp_path / "s", handlers.methods()) as running:
        yield running
        handlers.release.set()


@pytest.fixture
def channel(server: Serving) -> Iterator[Channel]:
    with Channel(server.path, timeout=60) as opened:
        yield opened


class _Foreign(grpc.GenericRpcHandler):
    """The same methods on grpcio's server."""

    def service(
        self, details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        name = details.method.rpartition("/")[2]
        if name == "Echo":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: request)
        if name == "Fail":
            return grpc.unary_unary_rpc_method_handler(_foreign_fail)
        if name == "Repeat":
            return grpc.unary_stream_rpc_method_handler(
                lambda request, context: Handlers().repeat(request, Call({}, CancelToken()))
            )
        return None


def _foreign_fail(request: bytes, context: grpc.ServicerContext) -> bytes:
    context.abort(grpc.StatusCode.NOT_FOUND, 'stat snapshot "schöne %": not found')


@pytest.fixture(params=["lamina", "grpcio"])
def any_channel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Channel]:
    path = tmp_path / "any"
    if request.param == "lamina":
        with serving(path, Handlers().methods()), Channel(path, timeout=60) as channel:
            yield channel
        return
    options = [("grpc.max_receive_message_length", -1)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=options)
        server.add_generic_rpc_handlers((_Foreign(),))
        server.add_insecure_port(f"unix:{path}")
        server.start()
        with Channel(path, timeout=60) as channel:
            yield channel
        server.stop(None).wait()


# Calls


@pytest.mark.parametrize("size", [0, 10, 16_379, 65_531, MIB, 16 * MIB])
def test_unary(any_channel: Channel, size: int) -> None:
    for _ in range(2):
        assert any_channel.unary("/test/Echo", bytes(size)) == bytes(size)


def test_error(any_channel: Channel) -> None:
    with pytest.raises(NotFound) as caught:
        any_channel.unary("/test/Fail", "schöne %".encode())
    assert str(caught.value).startswith('stat snapshot "schöne %"')
    assert str(caught.value).endswith(": not found")
    with pytest.raises(NotImplementedHere):
        any_channel.unary("/test/Nothing", bytes(MIB))
    assert any_channel.unary("/test/Echo", b"x") == b"x"


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1000, 10), (100, 50_000), (3, 8 * MIB)])
def test_stream(any_channel: Channel, count: int, size: int) -> None:
    messages = list(any_channel.stream("/test/Repeat", b"%d %d" % (count, size)))
    assert [len(message) for message in messages] == [size] * count


def test_many_threads(any_channel: Channel) -> None:
    def calls(number: int) -> None:
        for _ in range(10):
            assert any_channel.unary("/test/Echo", b"%d" % number) == b"%d" % number
            assert len(list(any_channel.stream("/test/Repeat", b"9 1000"))) == 9

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(calls, range(32)))


def test_metadata(channel: Channel, handlers: Handlers) -> None:
    channel.unary("/test/Echo", b"", metadata={"containerd-namespace": "k8s.io"}, timeout=9)
    assert handlers.metadata["containerd-namespace"] == "k8s.io"
    assert handlers.deadline is not None
    assert handlers.deadline - time.monotonic() < 9
    with pytest.raises(InvalidArgument):
        channel.unary("/test/Echo", b"", metadata={"containerd-namespace": "a\nb"})


def test_stream_that_fails_in_the_end(channel: Channel) -> None:
    received: list[bytes] = []
    with pytest.raises(NotFound):
        received.extend(channel.stream("/test/RepeatThenFail", b"5 5"))
    assert len(received) == 5


def test_too_large_request(channel: Channel) -> None:
    with pytest.raises(ResourceExhausted):
        channel.unary("/test/Size", bytes(17 * MIB))
    assert channel.unary("/test/Size", b"x") == b"1"


def test_too_large_response(channel: Channel) -> None:
    with pytest.raises(ResourceExhausted):
        list(channel.stream("/test/Repeat", b"1 %d" % (17 * MIB)))
    assert channel.unary("/test/Echo", b"x") == b"x"


def test_wrong_number_of_responses(channel: Channel) -> None:
    with pytest.raises(Internal, match="2 responses"):
        channel.unary("/test/Repeat", b"2 2")


def test_connections_are_kept_and_closed(channel: Channel, tmp_path: Path) -> None:
    def connections() -> int:
        links = (os.readlink(path) for path in _descriptors())
        return sum(link.startswith("socket:") for link in links)

    before = connections()
    for _ in range(20):
        channel.unary("/test/Echo", b"")
    assert connections() == before + 2  # both ends are in this process
    channel.close()
    assert eventually(lambda: connections() == before)


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.lexists(path):
            found.append(path)
    return found


# Giving up


@pytest.mark.parametrize("name", ["Wait", "Hang"])
def test_timeout(channel: Channel, handlers: Handlers, name: str) -> None:
    before = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        channel.unary(f"/test/{name}", b"", timeout=0.2)
    assert time.monotonic() - before < 2
    if name == "Wait":
        assert handlers.ended.wait(WAIT)
        assert isinstance(handlers.error, DeadlineExceeded | Cancelled)


def test_timeout_of_a_server_that_says_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "t"))
        listening.listen()
        with Channel(tmp_path / "t", timeout=0.1) as channel, pytest.raises(DeadlineExceeded):
            channel.unary("/test/Echo", bytes(16 * MIB))


def test_closing_an_iterator_cancels_the_call(channel: Channel, handlers: Handlers) -> None:
    responses = channel.stream("/test/Endless", b"x")
    assert next(responses) == b"x"
    responses.close()  # type: ignore[attr-defined]  # a generator
    assert handlers.ended.wait(WAIT)
    assert channel.unary("/test/Echo", b"x") == b"x"


# Servers that are not there


def test_nobody_listens(tmp_path: Path) -> None:
    with Channel(tmp_path / "none") as channel, pytest.raises(Unavailable, match="nobody listens"):
        channel.unary("/test/Echo", b"")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with Channel(tmp_path / "dead") as channel, pytest.raises(Unavailable, match="nobody listens"):
        channel.unary("/test/Echo", b"")


def test_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with Channel(tmp_path / ("x" * 200)) as channel, pytest.raises(InvalidArgument):
        channel.unary("/test/Echo", b"")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_permission(server: Serving) -> None:
    server.path.chmod(0o600)
    caught: list[BaseException] = []

    def call() -> None:
        libc_setresuid(65534)
        try:
            Channel(server.path).unary("/test/Echo", b"")
        except LaminaError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert isinstance(caught[0], PermissionDenied)


def libc_setresuid(uid: int) -> None:
    """Change the user of this thread alone, which libc's own function does not."""
    import ctypes
    import platform

    number = {"x86_64": 117, "aarch64": 147}[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, uid, uid, uid) == 0


def test_restarted_server(tmp_path: Path, handlers: Handlers) -> None:
    path = tmp_path / "t"
    with Channel(path, timeout=WAIT) as channel:
        for _ in range(3):
            with serving(path, handlers.methods()):
                assert channel.unary("/test/Echo", b"x") == b"x"
                assert len(list(channel.stream("/test/Repeat", b"3 3"))) == 3
        with pytest.raises(Unavailable):
            channel.unary("/test/Echo", b"x")


def test_call_that_the_server_does_not_outlive(tmp_path: Path, handlers: Handlers) -> None:
    path = tmp_path / "t"
    with serving(path, handlers.methods(), grace_seconds=0) as server:

        def stop() -> None:
            handlers.started.wait(WAIT)
            server.begin_stop()

        stopper = threading.Thread(target=stop)
        stopper.start()
        with Channel(path, timeout=WAIT) as channel, pytest.raises(Unavailable):
            channel.unary("/test/Wait", b"")
        stopper.join()


# Servers that misbehave


class _Script:
    """A server that does what it is told with each connection in turn."""

    def __init__(self, path: Path, *parts: Callable[[socket.socket], object]) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._parts = parts
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for part in self._parts:
            connection, _ = self._listening.accept()
            with connection:
                connection.settimeout(WAIT)
                connection.recv(65536)
                part(connection)

    def __enter__(self) -> _Script:
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.join(WAIT)
        self._listening.close()
        assert not self._thread.is_alive()


HEAD = STATUS_200 + literal(b"content-type", b"application/grpc")
OK = literal(b"grpc-status", b"0")
TOO_LARGE = ResourceExhausted


def _says(*frames: bytes) -> Callable[[socket.socket], object]:
    def part(connection: socket.socket) -> None:
        connection.sendall(b"".join(frames))
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass

    return part


def _answer(stream: int = 1, message: bytes = b"hi") -> bytes:
    return (
        frame(HEADERS, END_HEADERS, stream, HEAD)
        + frame(DATA, 0, stream, pack(message))
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, OK)
    )


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], Unavailable),
        ([b"\x15\x03\x01\0\2\2\x46\0\0"], Unavailable),
        ([frame(DATA, 0, 1, bytes(20_000))], Unavailable),
        ([frame(HEADERS, END_HEADERS, 1, b"\xff" * 9)], Unavailable),
        ([frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4))], Unavailable),
        ([rst_stream(1, ErrorCode.REFUSED_STREAM)], Unavailable),
        ([rst_stream(1, ErrorCode.CANCEL)], Cancelled),
        ([rst_stream(1, ErrorCode.ENHANCE_YOUR_CALM)], ResourceExhausted),
        ([rst_stream(1, ErrorCode.INTERNAL_ERROR)], Internal),
        ([goaway(0, ErrorCode.NO_ERROR)], Unavailable),
        ([frame(HEADERS, END_HEADERS | END_STREAM, 1, http_status(503))], Unavailable),
        ([frame(HEADERS, END_HEADERS | END_STREAM, 1, http_status(404))], NotImplementedHere),
        ([frame(HEADERS, END_HEADERS | END_STREAM, 1, HEAD)], LaminaError),
        ([frame(HEADERS, END_HEADERS, 1, STATUS_200)], LaminaError),
        (
            [frame(HEADERS, END_HEADERS | END_STREAM, 1, HEAD + literal(b"grpc-status", b"x"))],
            LaminaError,
        ),
        ([frame(HEADERS, END_HEADERS, 1, HEAD), frame(DATA, END_STREAM, 1)], Internal),
        ([frame(HEADERS, END_HEADERS, 1, HEAD), frame(DATA, 0, 1, b"\1" * 5)], Internal),
        ([frame(HEADERS, END_HEADERS, 1, HEAD), frame(DATA, 0, 1, b"\0\xff" * 3)], TOO_LARGE),
    ],
)
def test_odd_answers(tmp_path: Path, frames: list[bytes], kind: type[LaminaError]) -> None:
    with (
        _Script(tmp_path / "t", _says(settings({}), *frames)),
        Channel(tmp_path / "t", timeout=WAIT) as channel,
        pytest.raises(LaminaError) as caught,
    ):
        channel.unary("/test/Echo", b"")
    assert type(caught.value) is kind


def test_connection_that_breaks(tmp_path: Path) -> None:
    with (
        _Script(tmp_path / "t", lambda connection: connection.sendall(settings({}))),
        Channel(tmp_path / "t", timeout=WAIT) as channel,
        pytest.raises(Unavailable, match="closed the connection"),
    ):
        channel.unary("/test/Echo", b"")


def test_informational_answer_comes_first(tmp_path: Path) -> None:
    early = frame(HEADERS, END_HEADERS, 1, http_status(103))
    with (
        _Script(tmp_path / "t", _says(settings({}), early, _answer())),
        Channel(tmp_path / "t", timeout=WAIT) as channel,
    ):
        assert channel.unary("/test/Echo", b"") == b"hi"


def test_ping_is_answered(tmp_path: Path) -> None:
    def part(connection: socket.socket) -> None:
        connection.sendall(settings({}) + frame(PING, 0, 0, b"abcdefgh"))
        received = b""
        while frame(PING, ACK, 0, b"abcdefgh") not in received:
            received += connection.recv(65536)
        _says(_answer())(connection)

    with (
        _Script(tmp_path / "t", part),
        Channel(tmp_path / "t", timeout=WAIT) as channel,
    ):
        assert channel.unary("/test/Echo", b"") == b"hi"


@pytest.mark.parametrize(
    "goodbye", [b"", goaway(1, ErrorCode.NO_ERROR), b"garbage that is no frame"]
)
def test_idle_connection_that_the_server_gave_up(tmp_path: Path, goodbye: bytes) -> None:
    said = threading.Event()

    def first(connection: socket.socket) -> None:
        connection.sendall(settings({}) + _answer())
        connection.recv(65536)
        connection.sendall(goodbye)
        if not goodbye:
            connection.shutdown(socket.SHUT_RDWR)
        said.set()

    with (
        _Script(tmp_path / "t", first, _says(settings({}), _answer(message=b"again"))),
        Channel(tmp_path / "t", timeout=WAIT) as channel,
    ):
        assert channel.unary("/test/Echo", b"") == b"hi"
        assert said.wait(WAIT)
        assert channel.unary("/test/Echo", b"") == b"again"


@pytest.mark.parametrize(
    "refusal", [rst_stream(3, ErrorCode.REFUSED_STREAM), goaway(1, ErrorCode.NO_ERROR)]
)
def test_call_that_was_not_looked_at_is_made_again(tmp_path: Path, refusal: bytes) -> None:
    def first(connection: socket.socket) -> None:
        connection.sendall(settings({}) + _answer())
        received = b""
        while b"second" not in received:
            received += connection.recv(65536)
        connection.sendall(refusal)

    with (
        _Script(tmp_path / "t", first, _says(settings({}), _answer(message=b"again"))),
        Channel(tmp_path / "t", timeout=WAIT) as channel,
    ):
        assert channel.unary("/test/Echo", b"first") == b"hi"
        assert channel.unary("/test/Echo", b"second") == b"again"


def test_call_that_may_have_been_made_is_not_made_again(tmp_path: Path) -> None:
    def first(connection: socket.socket) -> None:
        connection.sendall(settings({}) + _answer())
        received = b""
        while b"second" not in received:
            received += connection.recv(65536)

    with (
        _Script(tmp_path / "t", first),
        Channel(tmp_path / "t", timeout=WAIT) as channel,
    ):
        assert channel.unary("/test/Echo", b"first") == b"hi"
        with pytest.raises(Unavailable):
            channel.unary("/test/Echo", b"second")


def test_few_idle_connections_are_kept(
    server: Serving, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "_IDLE", 2)
    with Channel(server.path, timeout=WAIT) as channel:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            futures = [pool.submit(channel.unary, "/test/Hang", b"") for _ in range(6)]
            assert handlers.started.wait(WAIT)
            handlers.release.set()
            assert [future.result(WAIT) for future in futures] == [b""] * 6
        assert len(channel._idle) <= 2
