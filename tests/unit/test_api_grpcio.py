"""The server, called by grpcio's client."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from lamina.errors import Cancelled, DeadlineExceeded
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
def client(server: Serving) -> Iterator[grpc.Channel]:
    with connected(server.path) as channel:
        yield channel


def connected(path: Path) -> grpc.Channel:
    options = [("grpc.max_receive_message_length", 64 * MIB), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(f"unix:{path}", options=options)


def unary(client: grpc.Channel, name: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    return client.unary_unary(f"/test/{name}")


def stream(client: grpc.Channel, name: str) -> grpc.UnaryStreamMultiCallable[bytes, bytes]:
    return client.unary_stream(f"/test/{name}")


@pytest.mark.parametrize("name", ["Echo", "Inline"])
def test_unary(client: grpc.Channel, handlers: Handlers, name: str) -> None:
    metadata = (("containerd-namespace", "k8s.io"), ("x-bin", b"\0\1"))
    before = time.monotonic()
    assert unary(client, name)(b"hello", timeout=60, metadata=metadata) == b"hello"
    assert handlers.metadata["containerd-namespace"] == "k8s.io"
    assert handlers.metadata["x-bin"] == "AAE"
    assert handlers.deadline is not None
    assert 55 < handlers.deadline - before < 65
    assert unary(client, name)(b"") == b""
    assert handlers.deadline is None


@pytest.mark.parametrize("name", ["Fail", "FailInline"])
def test_error(client: grpc.Channel, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(client, name)("schöne %\n键".encode())
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == 'stat snapshot "schöne %\n键"; look elsewhere: not found'


def test_long_error(client: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(client, "Fail")(b"k" * 100_000)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert str(caught.value.details()).startswith('stat snapshot "kkk')


def test_crash(client: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(client, "Crash")(b"")
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())
    assert "ZeroDivisionError: secret" in caplog.text


def test_unknown_method(client: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(client, "Nothing")(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        unary(client, "Nothing")(bytes(MIB))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("name", ["Echo", "Inline"])
@pytest.mark.parametrize("size", [16_379, 16_380, 65_530, 65_531, MIB, 16 * MIB])
def test_large_messages_both_ways(client: grpc.Channel, name: str, size: int) -> None:
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert unary(client, name)(message) == message


def test_too_large_message(client: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(client, "Size")(bytes(16 * MIB + 1))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert unary(client, "Size")(bytes(16 * MIB)) == b"%d" % (16 * MIB)


@pytest.mark.parametrize(
    ("count", "size"), [(0, 0), (1, 0), (1000, 10), (300, 20_000), (3, 5 * MIB)]
)
def test_stream(client: grpc.Channel, count: int, size: int) -> None:
    messages = list(stream(client, "Repeat")(b"%d %d" % (count, size)))
    assert messages == [bytes([number % 251]) * size for number in range(count)]


def test_stream_that_fails_in_the_end(client: grpc.Channel) -> None:
    received: list[bytes] = []
    with pytest.raises(grpc.RpcError) as caught:
        received.extend(stream(client, "RepeatThenFail")(b"500 1000"))
    assert len(received) == 500
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_slow_reader_holds_the_handler(client: grpc.Channel, handlers: Handlers) -> None:
    call = stream(client, "Endless")(bytes(MIB))
    assert next(call) == bytes(MIB)
    assert eventually(lambda: handlers.sent > 4)
    seen: list[int] = []

    def stands_still() -> bool:
        time.sleep(0.3)
        seen.append(handlers.sent)
        return len(seen) > 1 and seen[-1] == seen[-2]

    # How much the client takes in ahead is its own affair; here, the slower the machine the more.
    assert eventually(stands_still)
    call.cancel()
    assert handlers.ended.wait(WAIT)


@pytest.mark.parametrize("name", ["Wait", "Hang"])
def test_deadline(client: grpc.Channel, handlers: Handlers, name: str) -> None:
    before = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        unary(client, name)(b"", timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - before < 2
    if name == "Wait":
        assert handlers.ended.wait(WAIT)
        assert isinstance(handlers.error, DeadlineExceeded)


def test_cancelled_call(client: grpc.Channel, handlers: Handlers) -> None:
    call = unary(client, "Wait").future(b"")
    assert handlers.started.wait(WAIT)
    call.cancel()
    assert handlers.ended.wait(WAIT)
    assert isinstance(handlers.error, Cancelled)
    assert unary(client, "Echo")(b"still there") == b"still there"


def test_lost_client(server: Serving, handlers: Handlers) -> None:
    client = connected(server.path)
    call = unary(client, "Wait").future(b"")
    assert handlers.started.wait(WAIT)
    client.close()
    assert handlers.ended.wait(WAIT)
    assert isinstance(handlers.error, Cancelled)
    assert call.done()


def test_compressed_request(server: Serving) -> None:
    path = f"unix:{server.path}"
    with (
        grpc.insecure_channel(path, compression=grpc.Compression.Gzip) as client,
        pytest.raises(grpc.RpcError) as caught,
    ):
        unary(client, "Echo")(bytes(10_000))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_many_at_once(server: Serving) -> None:
    def calls(number: int) -> None:
        with connected(server.path) as client:
            for size in (number, number * 1000, number):
                assert unary(client, "Echo")(bytes(size)) == bytes(size)
                assert unary(client, "Inline")(bytes(size)) == bytes(size)
                assert len(list(stream(client, "Repeat")(b"20 %d" % size))) == 20

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(calls, range(48)))


def test_no_call_waits_behind_slow_ones(client: grpc.Channel, handlers: Handlers) -> None:
    slow = [unary(client, "Hang").future(b"") for _ in range(40)]
    assert handlers.started.wait(WAIT)
    assert unary(client, "Echo")(b"x", timeout=WAIT) == b"x"
    assert unary(client, "Inline")(b"x", timeout=WAIT) == b"x"
    assert not handlers.ended.is_set()
    handlers.release.set()
    assert [call.result(WAIT) for call in slow] == [b""] * 40
    assert unary(client, "Echo")(b"x", timeout=WAIT) == b"x"


def test_more_slow_calls_than_threads(tmp_path: Path, handlers: Handlers) -> None:
    with (
        serving(tmp_path / "t", handlers.methods(), threads=3) as server,
        connected(server.path) as client,
    ):
        slow = [unary(client, "Hang").future(b"%d" % number) for number in range(10)]
        assert handlers.started.wait(WAIT)
        handlers.release.set()
        assert [call.result(WAIT) for call in slow] == [b"%d" % number for number in range(10)]


def test_stop_lets_calls_end(server: Serving, client: grpc.Channel, handlers: Handlers) -> None:
    running = unary(client, "Hang").future(b"late")
    assert handlers.started.wait(WAIT)
    server.begin_stop()
    time.sleep(0.1)
    handlers.release.set()
    assert running.result(WAIT) == b"late"
    server.join()


def test_stop_after_its_grace(
    tmp_path: Path, handlers: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serving(tmp_path / "t", handlers.methods(), grace_seconds=0.2) as server,
        connected(server.path) as client,
    ):
        running = unary(client, "Wait").future(b"")
        assert handlers.started.wait(WAIT)
        before = time.monotonic()
        server.stop()
        assert time.monotonic() - before < 3
        with pytest.raises(grpc.RpcError) as caught:
            running.result(WAIT)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert isinstance(handlers.error, Cancelled)
    assert "cancelling 1 calls" in caplog.text


def test_client_comes_back_after_a_restart(tmp_path: Path, handlers: Handlers) -> None:
    path = tmp_path / "t"
    with connected(path) as client:
        for _ in range(2):
            with serving(path, handlers.methods()):
                assert unary(client, "Echo")(b"x", wait_for_ready=True, timeout=20) == b"x"
