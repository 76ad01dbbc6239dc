"""Lazy images whose tables of contents lie: what they leave behind, and what is read."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamina.core.labels import REMOTE
from lamina.formats.estargz.footer import estargz_footer
from lamina.mount import temp_mount
from lamina.snapshotters.lazy_overlay import REASON_LABEL
from lamina.store import Store
from tests.estargz import member, sha256, tar_member, toc_member
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_stargz import push, read_all, top, worker
from tests.images import Layer, digest, image
from tests.isolation import mount_points

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs, pytest.mark.registry]

BODY = b"what the tar says"
FILES = {"honest": BODY}
MANY = 200_000


def lying(entries: list[dict[str, Any]]) -> Layer:
    """Make a layer whose tar has one file, and whose table of contents says something else."""
    blob = member(tar_member("honest", BODY) + BODY + bytes(-len(BODY) % 512))
    blob += toc_member(entries) + estargz_footer(len(blob))
    return Layer(blob, digest(gzip.decompress(blob)))


def file(name: str, **more: Any) -> dict[str, Any]:
    whole = {"size": len(BODY), "innerOffset": 512, "chunkDigest": sha256(BODY)}
    return {"name": name, "type": "reg", "mode": 0o644} | whole | more


def link(name: str, to: str) -> dict[str, Any]:
    return {"name": name, "type": "hardlink", "linkName": to}


def chunk(**more: Any) -> dict[str, Any]:
    return {"name": "a", "type": "chunk", "chunkDigest": sha256(BODY), **more}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        pytest.param([link("a", "b"), link("b", "a")], "linkName", id="links in a circle"),
        pytest.param([link("a", "a")], "linkName", id="a link to itself"),
        pytest.param([link("a", "../../etc/passwd")], "linkName", id="a link out of the tree"),
        pytest.param([file("a\0b")], "name", id="NUL"),
        pytest.param([file("a"), file("a/b")], "name", id="a file as directory"),
        pytest.param([file("x" * 256)], "name", id="long name"),
        pytest.param([file("a", size=1 << 70)], "size", id="2^70 bytes"),
        pytest.param([file("a", size=1 << 62)], "chunkSize", id="2^62 bytes in a chunk"),
        pytest.param(
            [file("a", chunkSize=9), chunk(chunkOffset=5, offset=0, innerOffset=521)],
            "chunkOffset",
            id="chunks that overlap",
        ),
        pytest.param(
            [file("a"), file("b", innerOffset=513)], "innerOffset", id="data that overlaps"
        ),
        pytest.param([file("a", offset=1 << 40)], "offset", id="data behind the end"),
    ],
)
def test_a_table_of_contents_that_breaks_a_rule_is_not_used(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    tmp_path: Path,
    entries: list[dict[str, Any]],
    said: str,
) -> None:
    store = open_store()
    ref = push(registry, image(lying(entries)))
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    [info] = engine.walk()
    assert REMOTE not in info.labels
    assert said in info.labels[REASON_LABEL]
    assert read_all(store, ref, tmp_path) == FILES
    engine.cleanup()
    [directory] = (engine.root / "snapshots").iterdir()
    assert {path.name for path in directory.iterdir()} == {"fs", "unpacked", "work"}
    assert not [point for point in mount_points() if point.startswith(str(engine.root))]
    assert not (engine.root / "lazy" / "layers.json").exists()
    assert store.fsck() == []


@pytest.mark.parametrize(
    ("name", "found"), [("../../a", "a"), ("/a", "a"), ("./b/../a", "a"), ("..", None)]
)
def test_names_stay_in_the_tree(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    tmp_path: Path,
    name: str,
    found: str | None,
) -> None:
    store = open_store()
    ref = push(registry, image(lying([file(name)])))
    store.pull(ref, snapshotter="stargz", plain_http=True)
    assert read_all(store, ref, tmp_path) == ({found: BODY} if found else FILES)
    assert store.fsck() == []


def test_very_many_entries_are_a_layer_like_another(
    open_store: Callable[..., Store], registry: LocalRegistry, tmp_path: Path
) -> None:
    store = open_store()
    entries = [{"name": f"{n % 100}/{n}", "type": "reg"} for n in range(MANY)]
    ref = push(registry, image(lying([file("honest"), *entries])))
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = store.snapshotter("stargz")
    assert [REMOTE in info.labels for info in engine.walk()] == [True]
    with temp_mount(engine.view("look", top(store, ref)), dir=tmp_path, read_only=True) as root:
        assert (root / "honest").read_bytes() == BODY
        assert len(list((root / "7").iterdir())) == MANY // 100
    engine.remove("look")
    store.remove_image(ref)
    store.collect()
    engine.cleanup()
    assert worker(store).status().layers == []
    assert list((engine.root / "snapshots").iterdir()) == []
    assert store.fsck() == []
