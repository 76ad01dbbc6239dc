"""What `lamina serve` tells of lazy layers, whatever their worker does."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lamina.config import load
from lamina.lazy.served import ServedList
from lamina.mount import temp_mount
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.lazy_tally import LazyTally
from lamina.store import Store
from tests.fixtures_containers import wait_for
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_stargz import (
    ALL,
    CONFIG,
    FILES,
    end_lazy,
    end_worker,
    processes,
    push,
    read_all,
    stargz_layer,
    top,
)
from tests.images import Layer, image
from tests.kernel.test_serve import SECONDS, Daemon

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs, pytest.mark.registry]

COUNTERS = ("requests", "fetched_bytes", "fills", "wait_seconds", "failures")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    made.config.write_text(CONFIG.format(snapshotter="stargz", gate="auto", quiet="true"))
    yield made
    made.close()
    end_lazy(made.root)


@pytest.fixture
def store(daemon: Daemon) -> Iterator[Store]:
    with Store(daemon.root, config=load(daemon.config)) as opened:
        yield opened


def scrape(address: Path) -> dict[str, float]:
    """Return what the page says of lazy layers; their states by name."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(str(address))
        client.sendall(b"GET /v1/metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    page = answer.partition(b"\r\n\r\n")[2].decode()
    return {
        sample.labels.get("state", sample.name.removeprefix("lamina_lazy_")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("lamina_lazy_") and sample.labels["snapshotter"] == "stargz"
    }


def states(page: dict[str, float]) -> dict[str, float]:
    known = ("empty", "partial", "complete", "doubtful", "unpacked")
    return {name: page[name] for name in known if page[name]}


def test_a_daemon_tells_of_lazy_layers_while_their_worker_hangs(
    daemon: Daemon, store: Store, registry: LocalRegistry, tmp_path: Path
) -> None:
    address = daemon.directory / "metrics.sock"
    daemon.start("--metrics-address", str(address))
    assert not any(scrape(address).values())
    layers = [*map(stargz_layer, FILES), Layer.of({"plain": b"plain"})]
    ref = push(registry, image(*layers))
    store.pull(ref, snapshotter="stargz", plain_http=True)

    def waits_for(**found: int) -> dict[str, float]:
        wait_for(lambda: states(scrape(address)) == found)  # a page is made once a second
        return scrape(address)

    before = waits_for(empty=2, unpacked=1)
    assert before["local_bytes"] == 0
    assert before["size_bytes"] == sum(map(len, ALL.values()))
    mounts = store.snapshotter("stargz").view("look", top(store, ref))
    with temp_mount(mounts, dir=tmp_path, read_only=True) as root:
        assert (root / "a").read_bytes() == b"first"
        found = processes(daemon.root)
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        try:
            after = waits_for(empty=1, partial=1, unpacked=1)
        finally:
            for pid in found:
                os.kill(pid, signal.SIGCONT)
    assert before["size_bytes"] == after["size_bytes"] > after["local_bytes"] > 0
    assert all(after[f"{name}_total"] > 0 for name in COUNTERS if name != "failures")
    store.snapshotter("stargz").remove("look")
    assert read_all(store, ref, tmp_path) == ALL | {"plain": b"plain"}
    end_worker(daemon.root)
    page = waits_for(complete=2, unpacked=1)
    assert page["local_bytes"] == page["size_bytes"]
    assert processes(daemon.root) == []


def test_counters_never_fall(store: Store, registry: LocalRegistry, tmp_path: Path) -> None:
    engine = store.snapshotter("stargz")
    assert isinstance(engine, Engine)
    tally = LazyTally(engine)
    ref = push(registry, image(*map(stargz_layer, FILES)))
    store.pull(ref, snapshotter="stargz", plain_http=True)
    assert read_all(store, ref, tmp_path) == ALL
    first = tally.totals()
    assert first.layers["complete"] == 2
    assert (first.requests, first.fetched_bytes) == (0, 0)  # what was spent before is not counted
    engine.shrink(0)
    emptied = tally.totals()
    assert (emptied.layers["empty"], emptied.local_bytes) == (2, 0)
    assert emptied.size_bytes == first.size_bytes
    assert read_all(store, ref, tmp_path) == ALL
    again = tally.totals()
    assert again.fetched_bytes > 300_000
    for key in [info.name for info in engine.walk()][::-1]:
        engine.remove(key)
    assert sum(tally.totals().layers.values()) == 0
    assert [getattr(tally.totals(), name) for name in COUNTERS] == [
        getattr(again, name) for name in COUNTERS
    ]


def test_layers_that_may_have_read_zeros_are_told(store: Store, registry: LocalRegistry) -> None:
    engine = store.snapshotter("stargz")
    assert isinstance(engine, Engine)
    store.pull(
        push(registry, image(*map(stargz_layer, FILES))), snapshotter="stargz", plain_http=True
    )
    end_worker(store.root)
    served = ServedList(
        engine.root / "lazy"
    )  # as the next worker, which has lost the kernel's group
    served.doubt(served.layers[0].number)
    assert {k: n for k, n in LazyTally(engine).totals().layers.items() if n} == {
        "doubtful": 1,
        "empty": 1,
    }
