"""The metrics as Prometheus reads them, and the HTTP server against everybody else."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lamina.config import Config
from lamina.core.snapshot import Kind, Usage
from lamina.daemon.calls import CallRecorder, code_name
from lamina.daemon.http import MetricsServer
from lamina.daemon.metrics import CONTENT_TYPE, Metrics
from lamina.errors import AlreadyExists, LaminaError, NotFound
from lamina.meta.totals import Totals
from lamina.plugins import load
from lamina.snapshotters.lazy_tally import LazyTotals
from lamina.version import VERSION

LAZY = LazyTotals({"partial": 3, "doubtful": 0}, 500, 900, 12, 450, 7, 1.5, 1)
TOTALS = Totals({Kind.VIEW: 1, Kind.ACTIVE: 2, Kind.COMMITTED: 3}, Usage(40, 5000), 6, 7, 8)


def broken() -> Totals:
    raise LaminaError("the disk is gone")


def unreadable() -> LazyTotals:
    raise PermissionError("no")


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.exposition().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def test_exposition() -> None:
    metrics = Metrics(
        lambda: {"overlayfs": lambda: TOTALS, "native": broken, "zfs": None}, lambda: (5, 2)
    )
    metrics.measure("Stat", "overlayfs", "OK", 0.0003)
    metrics.measure("Stat", "overlayfs", "OK", 99)
    metrics.measure("Prepare", "", "InvalidArgument", 0.2)
    found = samples(metrics)
    stat = {"method": "Stat", "snapshotter": "overlayfs", "code": "OK"}
    assert found[of("lamina_rpc_duration_seconds_count", **stat)] == 2
    assert found[of("lamina_rpc_duration_seconds_sum", **stat)] == pytest.approx(99.0003)
    assert found[of("lamina_rpc_duration_seconds_bucket", **stat, le="0.00025")] == 0
    assert found[of("lamina_rpc_duration_seconds_bucket", **stat, le="0.0005")] == 1
    assert found[of("lamina_rpc_duration_seconds_bucket", **stat, le="+Inf")] == 2
    refused = {"method": "Prepare", "snapshotter": "", "code": "InvalidArgument"}
    assert found[of("lamina_rpc_duration_seconds_count", **refused)] == 1
    assert found[of("lamina_snapshots", snapshotter="overlayfs", kind="active")] == 2
    for name, value in (
        ("lamina_snapshotter_up", 1),
        ("lamina_snapshots_size_bytes", 5000),
        ("lamina_snapshots_inodes", 40),
        ("lamina_snapshots_unsynced", 6),
        ("lamina_removals_pending", 7),
        ("lamina_removals_total", 8),
    ):
        assert found[of(name, snapshotter="overlayfs")] == value
    assert found[of("lamina_snapshotter_up", snapshotter="native")] == 0
    assert of("lamina_removals_pending", snapshotter="native") not in found
    assert found[of("lamina_snapshotter_loaded", snapshotter="zfs")] == 0
    assert found[of("lamina_snapshotter_loaded", snapshotter="native")] == 1
    assert found[of("lamina_janitor_runs_total")] == 5
    assert found[of("lamina_janitor_failures_total")] == 2
    assert any(("version", VERSION) in labels for name, labels in found if name.endswith("_info"))
    assert found[of("process_resident_memory_bytes")] > 1 << 20


def test_lazy_layers(caplog: pytest.LogCaptureFixture) -> None:
    looks = {"stargz": lambda: LAZY, "other": unreadable}
    found = samples(Metrics(dict, lambda: (0, 0), lambda: looks))
    assert found[of("lamina_lazy_layers", snapshotter="stargz", state="partial")] == 3
    assert found[of("lamina_lazy_layers", snapshotter="stargz", state="doubtful")] == 0
    for name, value in (
        ("lamina_lazy_local_bytes", 500),
        ("lamina_lazy_size_bytes", 900),
        ("lamina_lazy_requests_total", 12),
        ("lamina_lazy_fetched_bytes_total", 450),
        ("lamina_lazy_fills_total", 7),
        ("lamina_lazy_wait_seconds_total", 1.5),
        ("lamina_lazy_failures_total", 1),
    ):
        assert found[of(name, snapshotter="stargz")] == value
        assert of(name, snapshotter="other") not in found
    assert "cannot add up lazy layers" in caplog.text


def test_every_metric_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/serve.md").read_text()
    documented = set(re.findall(r"^\| `(lamina_\w+)`", text, re.M))
    metrics = Metrics(lambda: {"overlayfs": lambda: TOTALS}, lambda: (0, 0))
    families = text_string_to_metric_families(metrics.exposition().decode())
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in families
        if family.name.startswith("lamina_")
    }
    assert names == documented


def test_a_real_store_counts_its_removals(tmp_path: Path) -> None:
    with load("native", tmp_path, Config()) as engine:
        engine.prepare("a")
        engine.commit("c", "a")
        engine.prepare("b", "c")
        engine.view("v", "c")
        engine.remove("b")
        totals = engine.totals()
        assert totals.kinds == {Kind.VIEW: 1, Kind.ACTIVE: 0, Kind.COMMITTED: 1}
        assert totals.usage == engine.usage("c")
        assert (totals.unsynced, totals.removals_pending, totals.removals_done) == (1, 1, 0)
        engine.cleanup()
        engine.sync()
        totals = engine.totals()
        assert (totals.unsynced, totals.removals_pending, totals.removals_done) == (0, 0, 1)


def test_recorder(caplog: pytest.LogCaptureFixture) -> None:
    measured: list[tuple[str, str, str, float]] = []
    recorder = CallRecorder(
        {"overlayfs": "overlayfs", "lamina-overlayfs": "overlayfs"},
        lambda *call: measured.append(call),
    )
    caplog.set_level("INFO", "lamina.daemon")
    recorder("Stat", "lamina-overlayfs", "k", 0, 0.01, None)
    assert caplog.records == []
    recorder("Stat", "invented by a client", "k", 3, 0.01, LaminaError("x"))
    recorder("Prepare", "overlayfs", "k 2", 0, 1.5, None)
    recorder("Remove", "overlayfs", "k", 13, 0.0012, NotFound("snapshot", "k"))
    recorder("Prepare", "overlayfs", "k", 6, 0.01, AlreadyExists("prepare layer", "k"))
    assert measured == [
        ("Stat", "overlayfs", "OK", 0.01),
        ("Stat", "", "InvalidArgument", 0.01),
        ("Prepare", "overlayfs", "OK", 1.5),
        ("Remove", "overlayfs", "Internal", 0.0012),
        ("Prepare", "overlayfs", "AlreadyExists", 0.01),
    ]
    lines = [
        (record.levelname, record.message, *map(vars(record).get, ("method", "key", "code")))
        for record in caplog.records
    ]
    assert lines == [
        ("INFO", "call failed", "Stat", "k", "InvalidArgument"),
        ("INFO", "call was slow", "Prepare", "k 2", "OK"),
        ("WARNING", "call failed", "Remove", "k", "Internal"),
        ("INFO", "exists already", "Prepare", "k", "AlreadyExists"),
    ]
    assert vars(caplog.records[2])["duration"] == "1.200ms"


def test_names_of_codes_are_grpcs() -> None:
    assert [code_name(number) for number in (0, 1, 4, 5, 16, 17, -1)] == [
        "OK", "Canceled", "DeadlineExceeded", "NotFound", "Unauthenticated", "Unknown", "Unknown",
    ]  # fmt: skip


Body = Callable[[Callable[[bytes], Awaitable[bytes]]], Awaitable[None]]


def serve(body: Body, page: Callable[[], bytes] = lambda: b"a 1\n") -> None:
    """Run the body beside a server; what it is given sends bytes and returns the whole answer."""

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = MetricsServer(page, CONTENT_TYPE)
        await server.start([listener])

        async def ask(data: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(data)
                async with asyncio.timeout(20):
                    return await reader.read()
            except ConnectionResetError:
                return b""
            finally:
                writer.close()

        try:
            await body(ask)
        finally:
            server.close()

    asyncio.run(main())


def test_the_page() -> None:
    async def body(ask: Any) -> None:
        answer = await ask(b"GET /v1/metrics?x=y HTTP/1.1\r\nHost: a\r\n\r\n")
        head, _, page = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
        assert b"\r\nContent-Length: 4\r\n" in head
        assert page == b"a 1\n"
        head, _, page = (await ask(b"HEAD /v1/metrics HTTP/1.0\r\n\r\n")).partition(b"\r\n\r\n")
        assert (head[:15], page) == (b"HTTP/1.1 200 OK", b"")

    serve(body)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /v1/metrics/../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /v1/metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"405"),
        (b"GET /v1/metrics\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /v1/metrics HTTP/1.1\r\n" + b"x: y\r\n" * 5000, b"431"),
        (b"G" * 100_000, b"431"),
    ],
)
def test_other_requests_are_refused(request_bytes: bytes, status: bytes) -> None:
    async def body(ask: Any) -> None:
        answer = await ask(request_bytes)
        # A connection that is closed before all was read may be reset under the answer.
        assert answer[9:12] == status or (not answer and status == b"431")

    serve(body)


def test_silent_ones_do_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.daemon.http._REQUEST_SECONDS", 0.5)

    async def body(ask: Any) -> None:
        silent = [asyncio.create_task(ask(b"GET ")) for _ in range(32)]
        await asyncio.sleep(0.2)
        assert (await ask(b"GET /v1/metrics HTTP/1.1\r\n\r\n"))[9:12] == b"503"
        assert {answer[9:12] for answer in await asyncio.gather(*silent)} == {b"408"}
        assert (await ask(b"GET /v1/metrics HTTP/1.1\r\n\r\n"))[9:12] == b"200"

    serve(body)


def test_pages_are_not_made_more_often_than_needed() -> None:
    made = []

    def page() -> bytes:
        made.append(1)
        return b"x"

    async def body(ask: Any) -> None:
        for _ in range(10):
            await ask(b"GET /v1/metrics HTTP/1.1\r\n\r\n")
        assert len(made) <= 2

    serve(body, page)


def test_a_page_that_cannot_be_made(caplog: pytest.LogCaptureFixture) -> None:
    def page() -> bytes:
        raise RuntimeError("no page")

    async def body(ask: Any) -> None:
        assert (await ask(b"GET /v1/metrics HTTP/1.1\r\n\r\n"))[9:12] == b"500"

    serve(body, page)
    assert "cannot make the metrics page" in caplog.text
