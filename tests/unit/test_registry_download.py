"""Downloads from a registry that goes wrong: what is retried, resumed and refused, and how."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from lamina.core.digest import parse_digest
from lamina.errors import (
    Cancelled,
    DataLoss,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from lamina.images.manifest import Descriptor
from lamina.images.reference import Reference, parse
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import CredentialStore
from lamina.images.registry.hosts import HostsConfig
from lamina.images.registry.retry import RetryPolicy
from tests.faulty_registry import (
    Fault,
    FaultyRegistry,
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
)

DATA = bytes(range(256)) * 4096
HALF = len(DATA) // 2


@dataclass
class MemorySink:
    data: bytearray = field(default_factory=bytearray)

    @property
    def offset(self) -> int:
        return len(self.data)

    def write(self, data: bytes | memoryview) -> None:
        self.data += data


class Download:
    """One blob in a faulty registry, and an impatient client that notes how long it would wait."""

    def __init__(self, faulty: FaultyRegistry) -> None:
        self.faulty = faulty
        self.waits: list[float] = []
        policy = RetryPolicy(
            attempts=4,
            read_timeout=0.3,
            progress_window=0.2,
            progress_bytes=1024,
            wait=lambda seconds, _: self.waits.append(seconds),
        )
        self.registry = Registry(HostsConfig(plain_http=True), CredentialStore(), retry=policy)
        self.descriptor = descriptor(faulty.add_blob(DATA))
        self.sink = MemorySink()

    @property
    def ref(self) -> Reference:
        return parse(f"{self.faulty.host}/team/app:v1")

    def run(self, *faults: Fault, cancel: Cancel | None = None) -> None:
        self.faulty.fault("/blobs/", *faults)
        self.registry.download(self.ref, self.descriptor, self.sink, cancel=cancel)

    def ranges(self) -> list[str]:
        return [seen.headers.get("Range", "") for seen in self.faulty.seen]


def descriptor(digest: str, size: int = len(DATA)) -> Descriptor:
    return Descriptor("application/octet-stream", parse_digest(digest), size)


@pytest.fixture
def download() -> Iterator[Download]:
    with faulty_registry() as faulty:
        prepared = Download(faulty)
        yield prepared
        prepared.registry.close()


def test_a_good_registry_is_asked_once(download: Download) -> None:
    download.run()
    assert download.sink.data == DATA
    digest = download.descriptor.digest
    assert download.faulty.paths() == [f"GET /v2/team/app/blobs/{digest}"]
    assert download.waits == []


def test_a_connection_is_used_again(download: Download) -> None:
    for _ in range(3):
        download.sink.data.clear()
        download.run()
    assert len(download.faulty.seen) == 3
    assert download.faulty.connections == 1


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_passing_troubles_are_waited_out(download: Download, code: int) -> None:
    download.run(status(code), status(code), status(code))
    assert download.sink.data == DATA
    assert len(download.waits) == 3
    assert 0.25 <= download.waits[0] <= 1
    assert 1 <= download.waits[2] <= 4


def test_troubles_that_do_not_pass_are_told_with_the_number_of_tries(download: Download) -> None:
    with pytest.raises(Unavailable, match=r"answered 500.*gave up after 4 tries") as caught:
        download.run(*[status(500)] * 9)
    assert download.faulty.host in str(caught.value)
    assert len(download.faulty.seen) == 4


@pytest.mark.parametrize(("value", "waited"), [("7", 7.0), ("86400", 60.0), ("soon", None)])
def test_retry_after_is_honoured_and_capped(
    download: Download, value: str, waited: float | None
) -> None:
    download.run(status(429, Retry_After=value))
    if waited is None:
        assert 0.25 <= download.waits[0] <= 1
    else:
        assert download.waits == [waited]


@pytest.mark.parametrize("fault", [cut(HALF), stall(HALF)], ids=["cut", "stall"])
def test_a_broken_download_goes_on_at_the_byte_it_stopped(download: Download, fault: Fault) -> None:
    download.run(fault)
    assert download.sink.data == DATA
    assert download.ranges() == ["", f"bytes={HALF}-{len(DATA) - 1}"]


def test_a_sink_with_bytes_already_starts_after_them(download: Download) -> None:
    download.sink.write(DATA[:1000])
    download.run()
    assert download.sink.data == DATA
    assert download.ranges() == [f"bytes=1000-{len(DATA) - 1}"]


def test_a_sink_that_is_complete_asks_nothing(download: Download) -> None:
    download.sink.write(DATA)
    download.run()
    assert download.faulty.seen == []


def test_a_sink_with_too_much_is_refused(download: Download) -> None:
    download.sink.write(DATA + b"x")
    with pytest.raises(OutOfRange):
        download.run()


def test_progress_renews_the_patience(download: Download) -> None:
    step = len(DATA) // 10
    download.run(*[cut(step)] * 8)
    assert download.sink.data == DATA
    assert len(download.faulty.seen) == 9


def test_crumbs_do_not_renew_the_patience(download: Download) -> None:
    with pytest.raises(Unavailable, match="gave up after 4 tries"):
        download.run(*[cut(100)] * 20)
    assert download.sink.data == DATA[:400]


def test_a_dribbling_registry_is_left(download: Download) -> None:
    began = time.monotonic()
    download.run(dribble(0.02))
    assert download.sink.data == DATA
    assert 0 < int(download.ranges()[1].removeprefix("bytes=").partition("-")[0]) < 50
    assert time.monotonic() - began < 5


def test_a_registry_that_hangs_up_is_asked_again(download: Download) -> None:
    download.run(hang_up(), hang_up())
    assert download.sink.data == DATA


def test_a_registry_that_ignores_ranges_is_read_past_what_is_there(download: Download) -> None:
    download.run(cut(HALF), ignore_range())
    assert download.sink.data == DATA


def test_a_registry_that_denies_ranges_is_asked_without(download: Download) -> None:
    download.sink.write(DATA[:1000])
    download.run(status(416))
    assert download.sink.data == DATA
    assert download.ranges() == [f"bytes=1000-{len(DATA) - 1}", ""]


@pytest.mark.parametrize(
    "said",
    [f"bytes 999-{len(DATA) - 1}/{len(DATA)}", f"bytes 1000-1001/{len(DATA) + 5}", "", "bytes x"],
)
def test_another_range_than_asked_for_is_refused(download: Download, said: str) -> None:
    download.sink.write(DATA[:1000])
    with pytest.raises(Unavailable, match="asked from byte 1000 on, it sent"):
        download.run(send(DATA[999:], 206, Content_Range=said))
    assert download.sink.data == DATA[:1000]


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_an_announced_size_that_is_not_the_manifests_is_refused(
    download: Download, size: int
) -> None:
    download.descriptor = descriptor(download.descriptor.digest, size)
    with pytest.raises(DataLoss, match=f"its size is {len(DATA)} there, {size} in the manifest"):
        download.run()
    assert download.sink.data == b""
    assert download.waits == []


def test_more_bytes_than_the_size_are_refused_at_once(download: Download) -> None:
    with pytest.raises(DataLoss, match=f"more than its {len(DATA)} bytes came"):
        download.run(chunked(DATA + b"x"))
    assert len(download.sink.data) <= len(DATA)
    assert download.waits == []


def test_fewer_bytes_than_the_size_are_asked_for_again(download: Download) -> None:
    download.run(chunked(DATA[:HALF]))
    assert download.sink.data == DATA


def test_fewer_bytes_for_ever_are_given_up(download: Download) -> None:
    with pytest.raises(Unavailable, match=f"it ended at byte {HALF} of {len(DATA)}"):
        download.run(*[chunked(DATA[:HALF])] * 9)


def test_a_login_page_is_not_a_blob(download: Download) -> None:
    with pytest.raises(Unavailable, match=r"the answer is text/html, not a blob.*; see whether"):
        download.run(html())
    assert download.waits == []


def test_a_missing_blob_is_not_waited_for(download: Download) -> None:
    del download.faulty.blobs[download.descriptor.digest]
    with pytest.raises(NotFound, match=r"404 \(NAME_UNKNOWN: no suchthing\): not found") as caught:
        download.run()
    assert str(download.ref) in str(caught.value)
    assert len(download.faulty.seen) == 1


def test_a_forbidden_blob_names_the_login(download: Download) -> None:
    with pytest.raises(PermissionDenied, match=r"answered 403.*use --user NAME.*docker login"):
        download.run(status(403))


def test_errors_of_the_sink_pass_unchanged(download: Download) -> None:
    class FullSink(MemorySink):
        def write(self, data: bytes | memoryview) -> None:
            raise ResourceExhausted("write blob")

    download.sink = FullSink()
    with pytest.raises(ResourceExhausted):
        download.run()
    assert len(download.faulty.seen) == 1


def test_an_unreachable_registry_that_never_answered_is_not_waited_for(download: Download) -> None:
    ref = parse("127.0.0.1:1/team/app:v1")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1: .*Connection refused"):
        download.registry.download(ref, download.descriptor, download.sink)
    assert download.waits == []


def test_cancelling_ends_a_read_that_waits() -> None:
    with faulty_registry() as faulty:
        registry = Registry(HostsConfig(plain_http=True), CredentialStore())
        digest = faulty.add_blob(DATA)
        faulty.fault("/blobs/", stall(1000))
        sink, cancel = MemorySink(), Cancel()
        timer = threading.Timer(0.2, cancel.set)
        timer.start()
        began = time.monotonic()
        with pytest.raises(Cancelled, match="fetch blob sha256:"):
            registry.download(
                parse(f"{faulty.host}/team/app:v1"), descriptor(digest), sink, cancel=cancel
            )
        assert time.monotonic() - began < 5
        timer.join()
        registry.close()
    assert sink.data == DATA[:1000]


def test_a_cancelled_download_asks_nothing(download: Download) -> None:
    cancel = Cancel()
    cancel.set()
    with pytest.raises(Cancelled):
        download.run(cancel=cancel)
    assert download.faulty.seen == []


def test_threads_share_one_registry(download: Download) -> None:
    sinks = [MemorySink() for _ in range(8)]
    threads = [
        threading.Thread(
            target=download.registry.download, args=(download.ref, download.descriptor, sink)
        )
        for sink in sinks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sink.data == DATA for sink in sinks)
