"""Images that a peer has converted: lazy, they are what unpacking makes of them, file by file."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from lamina.core.labels import REMOTE
from lamina.store import Store
from tests.fixtures_containers import Machine
from tests.fixtures_peer import BIG, FORMATS, NAMES_BELOW_MANY, Peer
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_stargz import end_lazy, fetched, top
from tests.hard_image import tree
from tests.trees import Entry

pytestmark = [
    pytest.mark.root,
    pytest.mark.overlay,
    pytest.mark.erofs,
    pytest.mark.registry,
    pytest.mark.ctr_remote,
]

OWN = {"stargz.index.json", ".no.prefetch.landmark"}
"""What is in the tar of a layer for the sake of its format, and no file of the image."""
SECOND = 1_000_000_000


def as_told(entries: dict[str, Entry], unpacked: dict[str, Entry], began: int) -> dict[str, Entry]:
    """Return of a tree what a table of contents can tell, and what unpacking does not touch.

    Times are in whole seconds, and those of directories which unpacking sets are left out.
    """
    now = time.time_ns()
    return {
        name: entry._replace(
            mtime_ns=-1
            if began <= unpacked[name].mtime_ns <= now
            else entry.mtime_ns // SECOND * SECOND
        )
        for name, entry in entries.items()
        if name not in OWN
    }


@pytest.mark.parametrize(
    ("gate", "format"),
    [
        pytest.param("fanotify", "estargz", marks=pytest.mark.fanotify),
        pytest.param("fuse", "zstdchunked", marks=pytest.mark.fuse),
    ],
)
def test_every_file_is_as_unpacked(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    peer: Peer,
    format: str,
    gate: str,
) -> None:
    began = time.time_ns()
    image = peer.image(format)
    ref = image.push(registry)
    store = open_store(gate)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    infos = list(store.snapshotter("stargz").walk())
    assert [REMOTE in info.labels for info in infos] == [True] * len(image.layers)
    assert fetched(store) == 0
    store.pull(ref, snapshotter="overlayfs", plain_http=True)
    lazy, unpacked = (tree(store, name, top(store, ref)) for name in ("stargz", "overlayfs"))
    assert unpacked.keys() - lazy.keys() <= OWN
    assert as_told(lazy, unpacked, began) == as_told(unpacked, unpacked, began)


@pytest.mark.runtime
@pytest.mark.parametrize("format", FORMATS)
def test_container_runs(machine: Machine, registry: LocalRegistry, peer: Peer, format: str) -> None:
    ref = peer.image(format).push(registry)
    stargz = ("--snapshotter", "stargz")
    look = "cat n*; busybox find many | wc -l; wc -c < many/big; echo > many/big; wc -c < many/big"
    try:
        machine.lamina("images", "pull", "--plain-http", *stargz, ref)
        argv = ("run", "--rm", "--env", "PATH=/box", *stargz, ref, machine.id, "sh", "-c", look)
        said = f"a name of 255 bytes{NAMES_BELOW_MANY}\n{BIG}\n1\n"
        assert machine.lamina(*argv).stdout == said
    finally:
        end_lazy(machine.root)
