"""What lazy layers have, what they have cost, and what is fetched first; from a real registry."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from lamina.errors import DeadlineExceeded, Unavailable
from lamina.lazy.picture import files_read
from lamina.lazy.unit_list import WANTED
from lamina.lazy.view import LayerView
from lamina.lazy_images import LazyImages
from lamina.mount import temp_mount
from lamina.store import Store
from tests.fixtures_registry import LocalRegistry, running_registry
from tests.fixtures_stargz import (
    GATES,
    end_worker,
    noise,
    push,
    stargz_layer,
    top,
    worker,
)
from tests.images import ImageFiles, Layer, image
from tests.startup import LAMINA

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs, pytest.mark.registry]
SECONDS = 60.0
LANDMARK, NO_LANDMARK = ".prefetch.landmark", ".no.prefetch.landmark"
FIRST = {"usr/bin/tool": noise(150_000, 1), "etc/tool": b"wanted"}
REST = {'usr/share/<big> & "more"': noise(600_000, 2), "usr/lib/other": noise(90_000, 3)}
FILES = {**FIRST, LANDMARK: b"\x0f", **REST}


Found = TypeVar("Found")


def until(condition: Callable[[], Found]) -> Found:
    """Wait for something that is true, and return it."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


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


@pytest.mark.parametrize("gate", GATES)
def test_what_was_read_is_shown_drawn_and_fetched_again(
    open_store: Callable[..., Store], registry: LocalRegistry, tmp_path: Path, gate: str
) -> None:
    store = open_store(gate)
    plain = Layer.of({"plain": b"plain"})
    ref = push(registry, image(stargz_layer(FIRST), plain, stargz_layer(REST)))
    store.pull(ref, snapshotter="stargz", plain_http=True)
    images = LazyImages(store)
    assert [layer.state for layer in images.layers(ref)] == ["lazy", "unpacked", "lazy"]
    with temp_mount(store.snapshotter("stargz").view("look", top(store, ref)), dir=tmp_path) as at:
        (at / "etc/tool").read_bytes()
    end_worker(store.root)  # what it has cost is still known
    base, unpacked, last = images.layers(ref)
    assert base.images == (ref,)
    assert (base.gate, base.cost.fills, last.cost.fills) == (gate, 1, 0)
    assert base.local_bytes == base.asked_bytes == 6
    assert base.cost.fetched_bytes > 0
    assert base.cost.wait_seconds > 0
    assert unpacked.reason.startswith("it is no eStargz")
    with images.views(ref) as views:
        assert [use.path for use in files_read(views[0][1], views[0][2])] == ["etc/tool"]
    [traced, _] = trace = images.trace(ref)
    assert traced["layer"] == base.digest
    assert [start < stop for start, stop in traced["ranges"]] == [True]  # type: ignore[attr-defined]
    assert json.loads(json.dumps(trace)) == LazyImages(open_store(gate)).trace(ref)


@pytest.mark.fuse
def test_command_line(
    open_store: Callable[..., Store], registry: LocalRegistry, tmp_path: Path
) -> None:
    store = open_store("fuse")
    ref = pulled(store, registry, FIRST, REST)
    first, second = caches(store)

    def lamina(*argv: str, code: int = 0) -> str:
        words = (LAMINA, "--root", str(store.root), "lazy", *argv)
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    paths = tmp_path / "list"
    paths.write_text("# what the tool needs\n**/tool\nusr/lib/*\n")
    lamina("prefetch", "--list", str(paths), ref)
    until(lambda: 0 not in local(first) and 1 in local(second))
    until(lambda: not any(layer.stage for layer in worker(store).status().layers))
    assert 0 in local(second)
    listed = lamina("ls")
    assert "complete" in listed and "lazy" in listed and ref in listed
    [one, two] = json.loads(lamina("ls", "--json"))
    assert {one["State"], two["State"]} == {"complete", "lazy"}
    shown = lamina("show", ref)
    assert "in 1 request\n" in shown and "0 reads waited" in shown
    drawn = lamina("map", ref)
    assert "+" in drawn and "." in drawn and "not fetched" in drawn
    lamina("map", "--svg", str(tmp_path / "map.svg"), ref)
    titles = [e.text or "" for e in ET.parse(tmp_path / "map.svg").iter() if "title" in e.tag]
    assert any('/usr/share/<big> & "more"' in title for title in titles)
    with temp_mount(store.snapshotter("stargz").view("look", top(store, ref)), dir=tmp_path) as at:
        (at / "usr/share" / '<big> & "more"').read_bytes()
    assert "usr/share/<big>" in lamina("map", ref)
    (tmp_path / "trace").write_text(lamina("trace", ref))
    lamina("prefetch", "--trace", str(tmp_path / "trace"), ref)
    lamina("wait", "--timeout", "30", ref)
    assert 0 not in local(second)
    lamina("wait", ref)
    assert lamina("shrink", "--to", "1TiB") == ""
    assert "not found" in lamina("show", "docker.io/library/none:1", code=3)
    assert "is no number of seconds" in lamina("wait", "--timeout", "nan", ref, code=2)
    assert "line 1" in lamina("prefetch", "--trace", str(paths), ref, code=2)
    assert "--snapshotter stargz" in lamina("ls", "--snapshotter", "overlayfs", code=7)


@pytest.mark.parametrize("gate", GATES)
def test_a_wait_that_cannot_end_says_why(
    open_store: Callable[..., Store], files: ImageFiles, tmp_path: Path, gate: str
) -> None:
    store = open_store(gate)
    with running_registry(tmp_path / "registry") as registry:
        ref = push(registry, files)
        store.pull(ref, snapshotter="stargz", plain_http=True)
    images = LazyImages(store)
    with pytest.raises(Unavailable, match="refused"):
        images.wait(ref, SECONDS)
    assert images.layers(ref)[0].state in {"completing", "stopped"}
    [base] = until(lambda: [one for one in images.layers(ref)[:1] if one.state == "stopped"])
    assert "refused" in base.reason
    assert base.resume_seconds > 0
    with pytest.raises(DeadlineExceeded, match=r"0\.0 B of .* are local"):
        images.wait(ref, 0)
