"""What lazy layers have, what they have cost, and what is fetched first; from a real registry."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.lazy.unit_list import WANTED
from lamina.lazy.view import LayerView
from lamina.mount import temp_mount
from lamina.store import Store
from tests.fixtures_registry import LocalRegistry
from tests.images import image
from tests.kernel.test_stargz import (
    GATES,
    end_worker,
    noise,
    open_store,
    push,
    stargz_layer,
    top,
    worker,
)

__all__ = ["open_store"]

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs, pytest.mark.registry]
SECONDS = 60.0
LANDMARK, NO_LANDMARK = ".prefetch.landmark", ".no.prefetch.landmark"
FIRST = {"usr/bin/tool": noise(150_000, 1), "etc/tool": b"wanted"}
REST = {'usr/share/<big> & "more"': noise(600_000, 2), "usr/lib/other": noise(90_000, 3)}
FILES = {**FIRST, LANDMARK: b"\x0f", **REST}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def caches(store: Store) -> list[Path]:
    root = store.snapshotter("stargz").root
    return sorted(path for path in (root / "snapshots").glob("*/cache"))


def local(cache: Path) -> list[int]:
    view = LayerView(cache)
    view.close()
    return list(view.local)


def pulled(store: Store, registry: LocalRegistry, *layers: dict[str, bytes]) -> str:
    ref = push(registry, image(*map(stargz_layer, layers)))
    store.pull(ref, snapshotter="stargz", plain_http=True)
    return ref


@pytest.mark.parametrize("gate", GATES)
def test_what_is_before_the_landmark_is_fetched_at_once(
    open_store: Callable[..., Store], registry: LocalRegistry, tmp_path: Path, gate: str
) -> None:
    store = open_store(gate)
    ref = pulled(store, registry, FILES, {NO_LANDMARK: b"\x0f", **REST}, REST)
    marked, forbidden, unmarked = caches(store)
    until(lambda: 1 in local(marked) and not worker(store).status().layers[0].stage)
    first = len(local(marked)) - local(marked)[::-1].index(1)
    assert local(marked) == [1] * first + [0] * (len(local(marked)) - first)
    view = LayerView(marked)
    assert view.trace == []  # nobody has asked for it
    assert view.table.source_range(first)[0] >= sum(map(len, FIRST.values()))
    assert view.local_bytes >= sum(map(len, FIRST.values()))
    view.close()
    for cache in (forbidden, unmarked):
        assert not (cache / WANTED).exists()
        assert 1 not in local(cache)
    with temp_mount(store.snapshotter("stargz").view("look", top(store, ref)), dir=tmp_path) as at:
        assert (at / "usr/lib/other").read_bytes() == REST["usr/lib/other"]
    view = LayerView(unmarked)
    assert view.trace
    view.close()


def test_the_next_worker_goes_on_with_the_rest(
    open_store: Callable[..., Store], registry: LocalRegistry
) -> None:
    store = open_store("fuse", quiet=False)
    pulled(store, registry, FILES)
    [cache] = caches(store)
    os.kill(worker(store).status().pid, signal.SIGKILL)
    until(lambda: 0 not in local(cache))
    until(
        lambda: (
            json.loads((cache.parents[2] / "lazy/layers.json").read_text())["layers"][0]["wish"]
            == ""
        )
    )
    end_worker(store.root)
