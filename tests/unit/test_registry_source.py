"""Parts of a blob from registries that go wrong: right bytes, or an error in time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.cancel import CancelToken, cancellable
from lamina.core.digest import parse_digest
from lamina.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from lamina.images.manifest import Descriptor
from lamina.images.reference import parse
from lamina.images.registry import source as source_module
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import Credential, CredentialStore
from lamina.images.registry.hosts import HostsConfig
from lamina.images.registry.retry import RetryPolicy
from lamina.images.registry.source import RegistrySource
from tests.faulty_registry import (
    Fault,
    FaultyRegistry,
    basic,
    chunked,
    cut,
    dribble,
    faulty_registry,
    hang_up,
    html,
    ignore_range,
    send,
    stall,
    status,
    tokens,
)

DATA = bytes(range(256)) * 4096
PART = (5000, 70_000)
WANTED = DATA[5000:75_000]
SECRET = "hunter2-signature"


class Parts:
    """One blob in a faulty registry, and an impatient client that notes how long it would wait."""

    def __init__(
        self,
        faulty: FaultyRegistry,
        hosts: Path | None = None,
        user: Credential | None = None,
    ) -> None:
        self.faulty = faulty
        self.waits: list[float] = []
        policy = RetryPolicy(
            attempts=4,
            read_timeout=0.3,
            progress_window=0.2,
            progress_bytes=1024,
            wait=lambda seconds, _: self.waits.append(seconds),
        )
        config = HostsConfig(directory=hosts, plain_http=True)
        self.registry = Registry(config, CredentialStore(user=user), retry=policy)
        digest = faulty.add_blob(DATA)
        descriptor = Descriptor("application/octet-stream", parse_digest(digest), len(DATA))
        self.source: RegistrySource = self.registry.source(
            parse(f"{faulty.host}/team/app:v1"), descriptor
        )

    def read(self, *faults: Fault) -> bytes:
        self.faulty.fault("/blobs/", *faults)
        return self.source.read_at(*PART)

    def ranges(self) -> list[str]:
        return [seen.headers.get("Range", "") for seen in self.faulty.seen]


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


@pytest.fixture
def other() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


@pytest.fixture
def parts(faulty: FaultyRegistry) -> Iterator[Parts]:
    prepared = Parts(faulty)
    yield prepared
    prepared.registry.close()


def redirect(url: str) -> Fault:
    return status(307, Location=url)


def ranged(said: str, data: bytes) -> Fault:
    return send(data, 206, Content_Range=said)


def test_only_the_range_is_asked_for_and_the_connection_used_again(parts: Parts) -> None:
    for _ in range(3):
        assert parts.read() == WANTED
    assert parts.source.size == len(DATA)
    assert parts.source.read_at(0, len(DATA)) == DATA
    assert parts.source.read_at(7, 0) == b""
    assert parts.ranges() == ["bytes=5000-74999"] * 3 + [f"bytes=0-{len(DATA) - 1}"]
    assert parts.faulty.connections == 1
    assert [seen.method for seen in parts.faulty.seen] == ["GET"] * 4
    counters = parts.source.counters
    assert (counters.requests, counters.received_bytes) == (4, 3 * len(WANTED) + len(DATA))


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (len(DATA), 1)])
def test_a_range_outside_is_refused_here(parts: Parts, offset: int, length: int) -> None:
    with pytest.raises(OutOfRange):
        parts.source.read_at(offset, length)
    assert parts.faulty.seen == []


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_passing_troubles_are_waited_out(parts: Parts, code: int) -> None:
    assert parts.read(status(code), status(code), hang_up()) == WANTED
    assert len(parts.waits) == 3


def test_a_registry_is_left_alone_as_long_as_it_asks(parts: Parts) -> None:
    assert parts.read(status(429, Retry_After="7")) == WANTED
    assert parts.waits == [7.0]


def test_patience_ends(parts: Parts) -> None:
    with pytest.raises(Unavailable, match="503"):
        parts.read(*[status(503)] * 4)
    assert len(parts.faulty.seen) == 4


@pytest.mark.parametrize("after", [0, 1, 69_999])
def test_a_body_that_breaks_off_is_continued(parts: Parts, after: int) -> None:
    assert parts.read(cut(after)) == WANTED
    assert parts.ranges() == ["bytes=5000-74999", f"bytes={5000 + after}-74999"]


def test_a_body_that_never_comes_to_its_end(parts: Parts) -> None:
    with pytest.raises(Unavailable, match=r"broke|ended"):
        parts.read(cut(100), *[cut(0)] * 4)


def test_silence_and_dribble_are_given_up_and_continued(parts: Parts) -> None:
    assert parts.read(stall(10)) == WANTED
    assert parts.read(dribble(0.02)) == WANTED


def test_a_partial_answer_may_be_shorter_than_asked(parts: Parts) -> None:
    said = f"bytes 5000-5009/{len(DATA)}"
    assert parts.read(ranged(said, DATA[5000:5010])) == WANTED
    assert parts.ranges()[1] == "bytes=5010-74999"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "bytes",
        f"bytes 5001-75000/{len(DATA)}",
        f"bytes 0-69999/{len(DATA)}",
        f"bytes 5000-75000/{len(DATA)}",
        f"bytes 5000-4999/{len(DATA)}",
        f"bytes 5000-74999/{len(DATA) + 1}",
        "bytes 5000-74999/x",
    ],
)
def test_another_range_than_asked_for_is_refused(parts: Parts, said: str) -> None:
    with pytest.raises(Unavailable, match="asked for bytes 5000-74999"):
        parts.read(ranged(said, WANTED))
    assert len(parts.faulty.seen) == 1


def test_the_size_may_be_left_out(parts: Parts) -> None:
    assert parts.read(ranged("bytes 5000-74999/*", WANTED)) == WANTED


def test_more_bytes_than_announced_are_not_taken(parts: Parts) -> None:
    said = f"bytes 5000-74999/{len(DATA)}"
    assert parts.read(ranged(said, WANTED + b"more" * 100_000)) == WANTED
    assert parts.read() == WANTED


def test_several_parts_are_refused(parts: Parts) -> None:
    kind = "multipart/byteranges; boundary=x"
    with pytest.raises(Unavailable, match="multipart"):
        parts.read(send(b"--x", 206, Content_Type=kind))


def test_a_whole_blob_is_read_up_to_what_is_wanted(parts: Parts) -> None:
    assert parts.read(ignore_range()) == WANTED
    assert parts.source.counters.received_bytes == 75_000
    assert parts.read() == WANTED


def test_a_whole_blob_is_not_read_for_a_far_part_of_it(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "MAX_SKIPPED", 4999)
    with pytest.raises(Unavailable, match=r"whole blob.*without lazy loading"):
        parts.read(ignore_range())
    assert parts.source.counters.received_bytes == 0
    assert len(parts.faulty.seen) == 1


def test_a_blob_of_another_size_is_refused(parts: Parts) -> None:
    with pytest.raises(DataLoss, match="its size is 9 there"):
        parts.read(send(b"something"))
    with pytest.raises(DataLoss, match="no bytes from 5000"):
        parts.read(status(416))
    with pytest.raises(Unavailable, match="ended"):
        parts.read(*[chunked(b"short")] * 4)


def test_a_login_page_is_not_a_blob(parts: Parts) -> None:
    with pytest.raises(Unavailable, match=r"text/html.*login page"):
        parts.read(html())


@pytest.mark.parametrize(
    ("code", "kind"), [(403, PermissionDenied), (404, NotFound), (400, Unavailable)]
)
def test_what_trying_again_cannot_help(parts: Parts, code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        parts.read(status(code))
    assert len(parts.faulty.seen) == 1


def test_a_token_is_renewed_when_it_is_refused(parts: Parts) -> None:
    faulty = parts.faulty
    faulty.challenge = f'Bearer realm="http://{faulty.host}/token",service="s"'
    faulty.token = tokens(faulty)
    assert parts.read() == WANTED
    faulty.accepted.clear()
    assert parts.read() == WANTED
    assert len([seen for seen in faulty.seen if seen.path.startswith("/token")]) == 2


def test_a_login_that_is_refused(parts: Parts) -> None:
    parts.faulty.challenge = 'Basic realm="r"'
    with pytest.raises(Unauthenticated, match="user and a password"):
        parts.read()


def test_where_a_redirect_leads_is_asked_directly_until_it_refuses(
    parts: Parts, other: FaultyRegistry
) -> None:
    digest = other.add_blob(DATA)
    faulty = parts.faulty
    for number in range(3):
        url = f"http://{other.host}/store/blobs/{digest}?signature={SECRET}{number}"
        faulty.fault("/v2/", redirect(url))
    assert parts.read() == WANTED
    assert parts.read() == WANTED
    assert (len(faulty.seen), len(other.seen)) == (1, 2)

    for code in (403, 401, 404, 410):
        other.fault("/blobs/", status(code))
        assert parts.source.read_at(*PART) == WANTED
        faulty.fault("/v2/", redirect(f"http://{other.host}/store/blobs/{digest}?{code}"))
    assert len(faulty.seen) == 5
    assert parts.source.counters.resolved == 5
    assert parts.waits == []


def test_the_registry_itself_may_take_over_from_where_it_led(
    parts: Parts, other: FaultyRegistry
) -> None:
    digest = other.add_blob(DATA)
    parts.faulty.fault("/v2/", redirect(f"http://{other.host}/store/blobs/{digest}"))
    assert parts.read() == WANTED
    other.fault("/blobs/", status(503))
    assert parts.read() == WANTED
    assert parts.read() == WANTED
    assert [len(parts.faulty.seen), len(other.seen), len(parts.waits)] == [3, 2, 1]


def test_nothing_secret_is_told(
    faulty: FaultyRegistry, other: FaultyRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="lamina")
    user = Credential("anna", SECRET)
    parts = Parts(faulty, user=user)
    faulty.challenge = 'Basic realm="r"'
    faulty.accepted.add(basic(f"anna:{SECRET}"))
    digest = other.add_blob(DATA)
    assert parts.source.read_at(0, 10) == DATA[:10]
    url = f"http://{other.host}/store/blobs/{digest}?X-Signature={SECRET}"
    faulty.fault("/v2/", redirect(url), redirect(url), redirect(url), redirect(url))
    other.fault("/blobs/", *[status(503)] * 8)
    with pytest.raises(Unavailable) as caught:
        parts.source.read_at(*PART)
    shown = f"{caught.value} {caught.value!r} {parts.source!r} {caplog.text}"
    assert SECRET not in shown
    assert basic(f"anna:{SECRET}") not in shown
    assert all("Authorization" not in seen.headers for seen in other.seen)
    parts.registry.close()


def mirrored(directory: Path, faulty: FaultyRegistry, mirror: FaultyRegistry) -> Path:
    place = directory / f"{faulty.host.replace(':', '_')}_"
    place.mkdir(parents=True)
    text = f'server = "http://{faulty.host}"\n[host."http://{mirror.host}"]\n'
    (place / "hosts.toml").write_text(text)
    return directory


def test_a_mirror_is_asked_first_and_the_registry_when_it_fails(
    tmp_path: Path, faulty: FaultyRegistry, other: FaultyRegistry
) -> None:
    parts = Parts(faulty, mirrored(tmp_path, faulty, other))
    assert parts.read() == WANTED
    assert len(other.seen) == 1
    assert len(faulty.seen) == 1

    other.add_blob(DATA)
    assert parts.read() == WANTED
    assert len(other.seen) == 1
    faulty.fault("/blobs/", status(500))
    assert parts.source.read_at(*PART) == WANTED
    assert len(other.seen) == 2
    assert parts.waits == []
    parts.registry.close()


def test_what_every_host_said_is_told(
    tmp_path: Path, faulty: FaultyRegistry, other: FaultyRegistry
) -> None:
    parts = Parts(faulty, mirrored(tmp_path, faulty, other))
    with pytest.raises(PermissionDenied, match=r"403.*before that.*404"):
        parts.read(status(403))
    parts.registry.close()


def test_a_host_that_may_not_be_pulled_from(tmp_path: Path, faulty: FaultyRegistry) -> None:
    place = tmp_path / f"{faulty.host.replace(':', '_')}_"
    place.mkdir()
    (place / "hosts.toml").write_text(
        f'server = "http://{faulty.host}"\ncapabilities = ["resolve"]\n'
    )
    with pytest.raises(FailedPrecondition, match="no host may"):
        Parts(faulty, tmp_path).read()


def test_nobody_waits_beyond_the_deadline(parts: Parts) -> None:
    late = pytest.raises((Unavailable, DeadlineExceeded))
    with cancellable(CancelToken(time.monotonic() + 0.1)), late:
        parts.read(*[stall(5)] * 10)
    assert len(parts.faulty.seen) <= 2
    parts.faulty.faults.clear()

    with cancellable(CancelToken(time.monotonic() + 30)), pytest.raises(Unavailable, match="429"):
        parts.read(status(429, Retry_After="40"))
    assert parts.waits == []
    with cancellable(CancelToken(time.monotonic() - 1)), pytest.raises(DeadlineExceeded):
        parts.read()


def test_whoever_gave_up_is_not_served(parts: Parts) -> None:
    token = CancelToken()

    def answer(handler: object) -> None:
        token.cancel()
        status(500)(handler)  # type: ignore[arg-type]

    with cancellable(token), pytest.raises(Cancelled):
        parts.read(answer)


def test_a_registry_that_is_gone(parts: Parts) -> None:
    with faulty_registry() as gone:
        missing = Parts(gone)
    with pytest.raises(Unavailable, match="connect to"):
        missing.source.read_at(*PART)


def test_many_threads_at_once(parts: Parts) -> None:
    wrong: list[int] = []

    def read(number: int) -> None:
        for offset in range(number * 1000, number * 1000 + 20_000, 4000):
            got = parts.source.read_at(offset, 3000)
            wrong.extend([offset] * (got != DATA[offset : offset + 3000]))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(parts.faulty.seen) == 40
    assert parts.faulty.connections <= 8
