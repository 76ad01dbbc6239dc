"""The snapshot store by itself: containerd's metastore tests, crashes, reboots, query plans."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.core.driver import Snapshot
from lamina.core.labels import FORKED_FROM, GC_ROOT, MAX_SIZE, SNAPSHOT_REF, UID_MAPPING
from lamina.core.snapshot import Info, Kind, Usage
from lamina.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LaminaError,
    NotFound,
    NotImplementedHere,
)
from lamina.meta import forks, recovery, snapshot_rows, snapshots
from lamina.meta.database import Database
from lamina.meta.owners import Owners
from lamina.meta.snapshot_schema import SNAPSHOTS
from lamina.meta.snapshots import SnapshotStore

Open = Callable[..., SnapshotStore]


class Opener:
    """Opens stores on one file, each as an owner of its own; can let an owner die."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._opened: list[tuple[SnapshotStore, Owners]] = []

    def __call__(self, boot: str = "boot-1") -> SnapshotStore:
        owners = Owners(self._directory / "owners")
        store = SnapshotStore(self._directory / "s.sqlite", boot=boot, owners=owners)
        self._opened.append((store, owners))
        return store

    def kill(self, store: SnapshotStore) -> None:
        """End the owner as the end of its process would: the lock goes, nothing else."""
        store.close()
        for known, owners in self._opened:
            if known is store:
                owners.close()

    def close(self) -> None:
        for store, owners in self._opened:
            store.close()
            owners.close()


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    found = Opener(tmp_path)
    yield found
    found.close()


@pytest.fixture
def store(opener: Opener) -> SnapshotStore:
    return opener()


def create(store: SnapshotStore, kind: Kind, key: str, parent: str = "") -> Snapshot:
    snapshot = store.begin_create(kind, key, parent)
    store.finish_create(snapshot.id)
    return snapshot


def active(store: SnapshotStore, key: str, parent: str = "") -> Snapshot:
    return create(store, Kind.ACTIVE, key, parent)


def commit(store: SnapshotStore, name: str, key: str, parent: str = "") -> Snapshot:
    snapshot = store.begin_commit(name, key, parent)
    store.finish_commit(snapshot.id, Usage(3, 4096))
    return snapshot


def committed(store: SnapshotStore, name: str, parent: str = "") -> int:
    active(store, f"{name}-key", parent)
    return commit(store, name, f"{name}-key").id


def names(store: SnapshotStore) -> list[str]:
    return [record.info.name for record in store.walk(lambda info: True)]


@pytest.fixture
def populated(store: SnapshotStore) -> SnapshotStore:
    committed(store, "committed-1")
    committed(store, "committed-2", "committed-1")
    active(store, "active-1")
    active(store, "active-2", "committed-1")
    active(store, "active-3", "committed-2")
    create(store, Kind.VIEW, "view-1")
    create(store, Kind.VIEW, "view-2", "committed-2")
    return store


def test_virgin_store_is_empty(store: SnapshotStore) -> None:
    assert names(store) == []
    assert store.ids() == {}
    assert store.backlog() == frozenset()
    assert store.damage() == []
    for call in (store.record, store.snapshot, store.remove):
        with pytest.raises(NotFound):
            call("missing")


def test_ids_start_at_one_and_are_never_reused(store: SnapshotStore) -> None:
    assert active(store, "a").id == 1
    store.remove("a")
    store.trash.settle(store.trash.claim(9), [])
    assert active(store, "a").id == 2


def test_walk_gives_all_in_byte_order(populated: SnapshotStore) -> None:
    active(populated, "Zebra")
    active(populated, "\uffee")
    active(populated, "\U00010000")
    assert names(populated) == [
        "Zebra", "active-1", "active-2", "active-3", "committed-1", "committed-2", "view-1",
        "view-2", "\uffee", "\U00010000",
    ]  # fmt: skip


def test_walk_pages(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{number:05}" for number in range(snapshots.PAGE * 2)]
    for key in keys:
        active(store, key)
    assert names(store) == keys


def test_walk_holds_no_lock(populated: SnapshotStore) -> None:
    for number, record in enumerate(populated.walk(lambda info: True)):
        assert populated.record(record.info.name) == record
        active(populated, f"00{number}")


def test_snapshot_and_record(populated: SnapshotStore) -> None:
    one, two = (populated.record(f"committed-{n}").id for n in (1, 2))
    assert populated.snapshot("active-3").parents == (two, one)
    assert populated.snapshot("active-1").parents == ()
    assert populated.snapshot("view-2").kind == Kind.VIEW
    record = populated.record("committed-2")
    assert record.info.parent == "committed-1"
    assert record.usage == Usage(3, 4096)
    with pytest.raises(FailedPrecondition):
        populated.snapshot("committed-1")


def test_create_errors(populated: SnapshotStore) -> None:
    for kind in (Kind.COMMITTED, Kind.UNKNOWN):
        with pytest.raises(InvalidArgument):
            populated.begin_create(kind, "new")
    with pytest.raises(InvalidArgument):
        populated.begin_create(Kind.ACTIVE, "")
    with pytest.raises(NotFound):
        populated.begin_create(Kind.ACTIVE, "active-1", "missing")
    for parent in ("active-1", "view-1"):
        with pytest.raises(InvalidArgument):
            populated.begin_create(Kind.VIEW, "active-1", parent)
    for key in ("active-1", "view-1", "committed-1"):
        with pytest.raises(AlreadyExists):
            populated.begin_create(Kind.ACTIVE, key, "committed-1")


def test_failed_create_takes_no_id(store: SnapshotStore) -> None:
    active(store, "a")
    with pytest.raises(AlreadyExists):
        store.begin_create(Kind.ACTIVE, "a")
    assert active(store, "b").id == 2


def test_commit(store: SnapshotStore) -> None:
    snapshot = store.begin_create(Kind.ACTIVE, "key", labels={"old": "1"})
    store.finish_create(snapshot.id)
    before = store.record("key").info
    begun = store.begin_commit("name", "key")
    assert begun == snapshot
    store.finish_commit(begun.id, Usage(1, 2), {"new": "1", "empty": ""})
    record = store.record("name")
    assert (record.id, record.usage) == (snapshot.id, Usage(1, 2))
    assert record.info.labels == {"new": "1"}
    assert record.info.created == record.info.updated > before.created
    with pytest.raises(NotFound):
        store.record("key")


def test_commit_errors_in_order(populated: SnapshotStore) -> None:
    def attempt(name: str, key: str, parent: str = "") -> None:
        populated.begin_commit(name, key, parent)

    with pytest.raises(InvalidArgument):
        attempt("", "active-1")
    with pytest.raises(AlreadyExists):
        attempt("committed-1", "missing")
    with pytest.raises(AlreadyExists):
        attempt("active-1", "active-1")
    with pytest.raises(NotFound):
        attempt("new", "missing", "missing")
    for key in ("committed-1", "view-1"):
        with pytest.raises(FailedPrecondition):
            attempt("new", key, "missing")
    with pytest.raises(InvalidArgument):
        attempt("new", "active-2", "committed-2")
    assert names(populated)[0] == "active-1"


def test_rebase(populated: SnapshotStore) -> None:
    base = populated.record("committed-1").id
    with pytest.raises(NotFound):
        populated.begin_commit("new", "active-1", "missing")
    for parent in ("active-2", "view-1"):
        with pytest.raises(FailedPrecondition):
            populated.begin_commit("new", "active-1", parent)
    with pytest.raises(NotImplementedHere):
        populated.begin_commit("new", "active-1", "committed-1", can_rebase=False)
    assert commit(populated, "new-1", "active-1", "committed-1").parents == (base,)
    assert commit(populated, "new-2", "active-2", "committed-1").parents == (base,)
    commit(populated, "new-3", "active-3", "")
    assert populated.record("new-1").info.parent == "committed-1"
    assert populated.record("new-3").info.parent == "committed-2"
    view = create(populated, Kind.VIEW, "view", "new-1")
    assert view.parents == (populated.record("new-1").id, base)
    with pytest.raises(FailedPrecondition):
        populated.remove("new-1")


def test_rebase_with_a_parent_of_its_own_needs_no_ability(populated: SnapshotStore) -> None:
    populated.begin_commit("new", "active-2", "committed-1", can_rebase=False)


def test_parent_of_a_commit_under_way_stays(populated: SnapshotStore) -> None:
    committed(populated, "lone")
    begun = populated.begin_commit("new", "active-1", "lone")
    with pytest.raises(FailedPrecondition, match="active-1"):
        populated.remove("lone")
    populated.abort_commit(begun.id)
    populated.remove("lone")


def test_remove(populated: SnapshotStore) -> None:
    expected = populated.record("active-2").id
    assert populated.remove("active-2") == (expected, Kind.ACTIVE)
    with pytest.raises(NotFound):
        populated.remove("active-2")
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="remove"):
            populated.remove("committed-1")
    assert populated.backlog() >= {("free", expected)}


def test_update(store: SnapshotStore) -> None:
    active(store, "a")
    before = store.record("a").info
    labels = {"one": "1", "two": "2", "dotted.key/x": "3"}
    changed = store.update(Info("a", parent="ignored", labels=labels), ()).info
    assert changed == before._replace(labels=labels, updated=changed.updated)
    assert changed.updated > before.updated
    paths = ("labels.one", "labels.dotted.key/x", "labels.new")
    changed = store.update(Info("a", labels={"dotted.key/x": "4", "new": "5"}), paths).info
    assert changed.labels == {"two": "2", "dotted.key/x": "4", "new": "5"}
    for path in ("parent", "kind", "name", "label", "labelsx"):
        with pytest.raises(InvalidArgument, match=f'cannot update "{path}" field on snapshot "a"'):
            store.update(Info("a", labels={}), ("labels.two", path))
    assert store.record("a").info == changed
    assert store.update(Info("a"), ("labels",)).info.labels == {}


def test_preparing_is_invisible_but_taken(store: SnapshotStore) -> None:
    snapshot = store.begin_create(Kind.ACTIVE, "a")
    for call in (store.record, store.snapshot):
        with pytest.raises(NotFound):
            call("a")
    with pytest.raises(NotFound):
        store.begin_commit("b", "a")
    with pytest.raises(NotFound):
        store.begin_create(Kind.ACTIVE, "b", "a")
    with pytest.raises(FailedPrecondition, match="being prepared"):
        store.remove("a")
    with pytest.raises(AlreadyExists):
        store.begin_create(Kind.VIEW, "a")
    assert names(store) == []
    assert store.abandon(snapshot.id)
    assert not store.abandon(snapshot.id)
    active(store, "a")


def test_committing_is_active_and_takes_both_names(store: SnapshotStore) -> None:
    active(store, "a")
    begun = store.begin_commit("b", "a")
    assert names(store) == ["a"]
    assert store.snapshot("a").kind == Kind.ACTIVE
    for key in ("a", "b"):
        with pytest.raises(AlreadyExists):
            store.begin_create(Kind.ACTIVE, key)
    with pytest.raises(NotFound):
        store.record("b")
    with pytest.raises(FailedPrecondition):
        store.begin_commit("c", "a")
    with pytest.raises(FailedPrecondition):
        store.remove("a")
    store.abort_commit(begun.id)
    active(store, "b")
    store.remove("a")


def test_dead_owners_work_is_undone(opener: Opener) -> None:
    dead, living = opener(), opener()
    active(dead, "half-committed")
    dead.begin_commit("name", "half-committed")
    half = dead.begin_create(Kind.ACTIVE, "half-made")
    assert living.half_done() == []
    opener.kill(dead)
    assert living.half_done() == [("half-committed", "committing"), ("half-made", "preparing")]
    active(living, "half-made")
    commit(living, "name", "half-committed")
    assert living.half_done() == []
    assert ("free", half.id) in living.backlog()


def test_recover_undoes_without_a_write(opener: Opener) -> None:
    dead, living = opener(), opener()
    dead.begin_create(Kind.ACTIVE, "half-made")
    opener.kill(dead)
    living.recover()
    assert living.half_done() == []


def test_living_owner_is_left_alone(opener: Opener) -> None:
    slow, other = opener(), opener()
    making = slow.begin_create(Kind.ACTIVE, "slow")
    active(other, "quick")
    with pytest.raises(AlreadyExists):
        other.begin_create(Kind.ACTIVE, "slow")
    slow.finish_create(making.id)
    assert names(other) == ["quick", "slow"]


def test_owner_taken_for_dead_cannot_finish(opener: Opener, tmp_path: Path) -> None:
    slow, other = opener(), opener()
    making = slow.begin_create(Kind.ACTIVE, "slow")
    for path in (tmp_path / "owners").iterdir():
        path.unlink()
    other.recover()
    with pytest.raises(Aborted):
        slow.finish_create(making.id)


def test_trash_is_claimed_once(opener: Opener) -> None:
    first, second = opener(), opener()
    ids = [active(first, f"{number}").id for number in range(5)]
    for number in (3, 1, 0, 2, 4):
        first.remove(f"{number}")
    assert first.trash.claim(2) == [ids[3], ids[1]]
    assert second.trash.claim(9, besides={ids[4]}) == [ids[0], ids[2]]
    assert second.trash.claim_one(ids[4])
    assert not first.trash.claim_one(ids[4])
    first.trash.settle([ids[3]], [ids[1]])
    opener.kill(second)
    assert first.trash.claim(9) == [ids[1], ids[0], ids[2], ids[4]]


def test_orphans_are_what_nobody_knows(store: SnapshotStore) -> None:
    kept = active(store, "kept").id
    making = store.begin_create(Kind.ACTIVE, "making").id
    gone = active(store, "gone").id
    store.remove("gone")
    assert store.trash.adopt_orphans([kept, making, gone, 77, 78]) == [78, 77]
    assert store.trash.ids() == {gone, 77, 78}


def test_sync_clears_only_what_was_committed_before(store: SnapshotStore) -> None:
    first = committed(store, "first")
    ids = store.unsynced()
    second = committed(store, "second")
    store.mark_synced(ids)
    assert ids == [first]
    assert store.unsynced() == [second]


def test_reboot_drops_what_was_not_synced(opener: Opener) -> None:
    store = opener("boot-1")
    assert store.rebooted()
    store.reboot([])
    assert not store.rebooted()
    committed(store, "synced")
    store.mark_synced(store.unsynced())
    committed(store, "one", "synced")
    committed(store, "two", "one")
    on_disk = list(store.ids())
    opener.kill(store)

    store = opener("boot-2")
    assert store.rebooted()
    assert sorted(store.reboot(on_disk)) == ["one", "two"]
    assert store.reboot(on_disk) == []
    assert names(store) == ["synced"]
    committed(store, "one", "synced")


def test_reboot_keeps_but_refuses_what_others_stand_on(opener: Opener) -> None:
    store = opener("boot-1")
    store.reboot([])
    committed(store, "base")
    committed(store, "middle", "base")
    active(store, "container", "middle")
    on_disk = list(store.ids())
    opener.kill(store)

    store = opener("boot-2")
    assert sorted(store.reboot(on_disk)) == ["base", "middle"]
    assert store.lost() == ["base", "middle"]
    with pytest.raises(DataLoss, match="pull its image again"):
        store.snapshot("container")
    with pytest.raises(DataLoss):
        store.begin_create(Kind.VIEW, "view", "base")
    for key in ("container", "middle", "base"):
        store.remove(key)
    committed(store, "base")


CHAIN = {"containerd.io/snapshot.ref": "chain"}


def lost_layer(opener: Opener, labels: dict[str, str]) -> SnapshotStore:
    """Return a store in which `chain` is lost and `container` stands on it."""
    store = opener("boot-1")
    store.reboot([])
    active(store, "extract")
    store.finish_commit(store.begin_commit("chain", "extract").id, Usage(), labels)
    active(store, "container", "chain")
    on_disk = list(store.ids())
    opener.kill(store)
    store = opener("boot-2")
    assert store.reboot(on_disk) == ["chain"]
    return store


def test_lost_layer_is_restored_by_a_commit_of_the_same_chain(opener: Opener) -> None:
    store = lost_layer(opener, CHAIN)
    lost = store.ids()
    with pytest.raises(NotFound, match="pull its image again to restore it"):
        store.record("chain")
    with pytest.raises(NotFound):
        store.update(Info("chain"), ())
    with pytest.raises(DataLoss, match="pull its image again to restore it"):
        store.begin_create(Kind.ACTIVE, "other", "chain")
    assert names(store) == ["chain", "container"]

    for key in ("extract", "second"):
        store.finish_create(store.begin_create(Kind.ACTIVE, key, labels=CHAIN).id)
    new = store.begin_commit("chain", "extract")
    with pytest.raises(AlreadyExists):
        store.begin_commit("chain", "second")
    assert store.lost() == ["chain"], "until the new one is whole"
    store.finish_commit(new.id, Usage(), CHAIN)
    assert store.snapshot("container").parents == (new.id,)
    assert store.lost() == []
    assert store.trash.ids() == {id for id, key in lost.items() if key == "chain"}
    assert store.damage() == []
    with pytest.raises(AlreadyExists):
        store.begin_commit("chain", "second")


def test_what_a_containerd_has_a_record_of_is_restored_there(opener: Opener) -> None:
    store = opener("boot-1")
    store.reboot([])
    committed(store, "default/2/sha256:aa")
    active(store, "default/3/container", "default/2/sha256:aa")
    on_disk = list(store.ids())
    opener.kill(store)
    store = opener("boot-2")
    assert store.reboot(on_disk) == ["default/2/sha256:aa"]
    with pytest.raises(NotFound, match="remove there its containers and image, then pull"):
        store.record("default/2/sha256:aa")
    with pytest.raises(DataLoss, match="remove there its containers and image, then pull"):
        store.snapshot("default/3/container")


@pytest.mark.parametrize(
    ("old", "new"), [({}, {}), ({}, CHAIN), (CHAIN, {}), (CHAIN, {**CHAIN, next(iter(CHAIN)): "x"})]
)
def test_lost_layer_gives_way_to_nothing_else(
    opener: Opener, old: dict[str, str], new: dict[str, str]
) -> None:
    store = lost_layer(opener, old)
    store.finish_create(store.begin_create(Kind.ACTIVE, "other", labels=new).id)
    with pytest.raises(AlreadyExists):
        store.begin_commit("chain", "other")


def test_lost_layer_can_be_removed_while_it_is_being_restored(opener: Opener) -> None:
    store = lost_layer(opener, CHAIN)
    store.finish_create(store.begin_create(Kind.ACTIVE, "extract", labels=CHAIN).id)
    new = store.begin_commit("chain", "extract")
    store.remove("container")
    store.remove("chain")
    store.finish_commit(new.id, Usage())
    assert names(store) == ["chain"]
    assert store.record("chain").id == new.id


def test_reboot_drops_snapshots_without_storage_and_passes_over_ids_on_disk(
    opener: Opener,
) -> None:
    store = opener("boot-1")
    store.reboot([])
    kept = active(store, "kept").id
    active(store, "gone")
    opener.kill(store)
    store = opener("boot-2")
    assert store.reboot([kept, 40]) == ["gone"]
    assert active(store, "new").id == 41


def test_threads_and_owners_get_unique_ids_and_one_winner_per_key(opener: Opener) -> None:
    ids: list[int] = []
    winners: list[str] = []
    failures: list[BaseException] = []

    def work(store: SnapshotStore, number: int) -> None:
        try:
            for turn in range(20):
                ids.append(active(store, f"own-{number}-{turn}").id)
                try:
                    active(store, f"shared-{turn}")
                except AlreadyExists:
                    continue
                winners.append(f"shared-{turn}")
        except LaminaError as error:
            failures.append(error)

    stores = [opener(), opener()]
    threads = [threading.Thread(target=work, args=(stores[n % 2], n)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(set(ids)) == len(ids) == 120
    assert sorted(winners) == sorted(f"shared-{turn}" for turn in range(20))


@pytest.mark.parametrize(
    "query",
    [
        f"{snapshot_rows.INFO} = 'x'",
        snapshots.WALK.replace("?", "'x'"),
        snapshot_rows.FIND.replace("?", "'x'"),
        snapshot_rows.HOLDER.replace("?1", "'x'"),
        snapshot_rows.COMMITTING_TO.replace("?", "'x'"),
        snapshot_rows.CHILD.replace("?1", "1"),
        snapshot_rows.CHAIN.replace("?", "1"),
        snapshots.BACKLOG,
        recovery.LOST.replace("?", "1"),
        recovery.OWNERS,
        forks.BEING_FORKED.replace("?", "1"),
        forks.IN_NAMESPACE.replace("?1", "'x'"),
    ],
)
def test_no_query_of_the_hot_path_reads_the_whole_table(
    store: SnapshotStore, tmp_path: Path, query: str
) -> None:
    connection = sqlite3.connect(tmp_path / "s.sqlite")
    try:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    finally:
        connection.close()
    tables = [step for step in plan if step.startswith("SCAN")]
    allowed = ("SCAN chain", "SCAN trash", "SCAN (subquery")
    # Partial indexes have rows only for what is in transition or not yet synced.
    assert all(step.startswith(allowed) or " INDEX snapshots_" in step for step in tables), plan
    assert any("INDEX" in step or "PRIMARY KEY" in step for step in plan), plan


def test_source_is_neither_committed_nor_removed_while_it_is_forked(opener: Opener) -> None:
    store, other = opener(), opener()
    source = active(store, "a")
    told, fork = store.begin_fork("a", "b")
    _, second = store.begin_fork("a", "c")
    assert told == source
    for each in (store, other):
        with pytest.raises(FailedPrecondition, match=r'remove snapshot "a".*forked as "[bc]"'):
            each.remove("a")
        with pytest.raises(FailedPrecondition, match=r'commit snapshot "a".*forked as "[bc]"'):
            each.begin_commit("name", "a")
        with pytest.raises(NotFound):
            each.record("b")
        with pytest.raises(AlreadyExists):
            each.begin_create(Kind.ACTIVE, "b")
    store.finish_create(fork.id)
    with pytest.raises(FailedPrecondition, match='forked as "c"'):
        other.remove("a")
    store.abandon(second.id)
    other.remove("a")
    assert store.record("b").info.kind == Kind.ACTIVE


def test_source_of_a_fork_whose_process_died_is_free(opener: Opener) -> None:
    store, other = opener(), opener()
    active(store, "a")
    _, fork = store.begin_fork("a", "b")
    opener.kill(store)
    other.remove("a")
    assert ("free", fork.id) in other.backlog()
    assert active(other, "b").id > fork.id


def test_what_is_being_committed_is_not_forked(store: SnapshotStore) -> None:
    snapshot = active(store, "a")
    store.begin_commit("name", "a")
    with pytest.raises(FailedPrecondition, match="it is being committed"):
        store.begin_fork("a", "b")
    store.abort_commit(snapshot.id)
    store.begin_fork("a", "b")


def test_empty_key_is_named(store: SnapshotStore) -> None:
    for use in (lambda: store.begin_fork("", "b"), lambda: store.record("")):
        with pytest.raises(NotFound, match=r'^snapshot "": not found; name its key$'):
            use()


def test_fork_of_what_stands_on_a_lost_layer_is_refused(opener: Opener) -> None:
    store = opener("boot-1")
    committed(store, "base")
    active(store, "a", "base")
    store.close()
    store = opener("boot-2")
    store.reboot([1, 2])
    with pytest.raises(DataLoss):
        store.begin_fork("a", "b")


def test_labels_of_the_storage_are_those_of_the_source(store: SnapshotStore) -> None:
    labels = {MAX_SIZE: "4096", GC_ROOT: "x", SNAPSHOT_REF: "y", "own": "z"}
    snapshot = store.begin_create(Kind.ACTIVE, "a", labels=labels)
    store.finish_create(snapshot.id)
    with pytest.raises(InvalidArgument, match="max-size"):
        store.begin_fork("a", "b", {MAX_SIZE: "8192"})
    with pytest.raises(InvalidArgument, match="uidmapping"):
        store.begin_fork("a", "b", {UID_MAPPING: "0:1:2"})
    _, fork = store.begin_fork("a", "b", {MAX_SIZE: "4096", "new": "n"})
    assert fork.labels == {MAX_SIZE: "4096", "own": "z", "new": "n", FORKED_FROM: "a"}


def test_store_of_a_version_without_forks_is_brought_up_to_date(
    opener: Opener, tmp_path: Path
) -> None:
    Database(tmp_path / "s.sqlite", (SNAPSHOTS,)).close()
    store = opener()
    active(store, "a")
    store.begin_fork("a", "b")


def test_lock_file_of_the_living_is_locked(opener: Opener, tmp_path: Path) -> None:
    store = opener()
    store.begin_create(Kind.ACTIVE, "a")
    (path,) = (tmp_path / "owners").iterdir()
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        os.close(fd)
