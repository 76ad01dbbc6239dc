"""Compares a snapshotter's store with the disk, and says how each difference is mended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from lamina.core.driver import Driver, Inspectable, Thorough
from lamina.core.labels import SNAPSHOT_REF
from lamina.core.problem import Problem, Repair
from lamina.core.snapshot import Kind
from lamina.meta.damage import is_of_an_index
from lamina.meta.snapshot_rows import Record, asks_containerd
from lamina.meta.snapshots import SnapshotStore
from lamina.snapshotters.reaper import Reaper


class Origin(NamedTuple):
    """Where a layer can be had from again.

    Attributes:
        image: name of an image that has it.
        restore: unpacks it anew; None where some of the image's content is not here.
    """

    image: str
    restore: Callable[[], object] | None = None


OriginOf = Callable[[str], Origin | None]
"""Returns where the layer of a chain id can be had from; None where no image has it."""


def unknown(chain_id: str) -> Origin | None:
    """Know of no image."""
    return None


def check(
    store: SnapshotStore,
    driver: Driver,
    reaper: Reaper,
    origin: OriginOf = unknown,
    *,
    deep: bool = False,
) -> list[Problem]:
    """Return every problem; see `Engine.fsck`."""
    rows = [_bad_row(store, key) for _, key, _ in store.repair.bad_rows()]
    if rows:
        return rows  # all that follows reads them
    problems = _Check(store, driver, reaper, origin)
    return [*problems.problems(), *(problems.damage() if deep else ())]


def _bad_row(store: SnapshotStore, key: str) -> Problem:
    repair = Repair("resets them", lambda: store.repair.reset_labels(key))
    return Problem(key, "its labels cannot be read", "then check again", repair)


class _Check:
    """One comparison.

    A snapshot has a row before, and a row or an entry in the trash as long as, it has storage. So
    with the rows read before and after the disk, whatever is made or removed meanwhile is told
    from what is wrong.
    """

    def __init__(
        self, store: SnapshotStore, driver: Driver, reaper: Reaper, origin: OriginOf
    ) -> None:
        self._store = store
        self._driver = driver
        self._reaper = reaper
        self._origin = origin
        before = store.complete_ids()
        stored = set(driver.ids())
        after = store.complete_ids()
        self._missing = sorted((before.keys() & after.keys()) - stored)
        orphans = stored - store.ids().keys() - store.trash.ids()
        # Listed again: what was in the trash may be gone from both by now.
        self._orphans = sorted(orphans & set(driver.ids())) if orphans else []
        names = {after[id] for id in self._missing} | set(store.lost())
        self._records = {
            record.info.name: record for record in store.walk(lambda info: info.name in names)
        }

    def problems(self) -> list[Problem]:
        missing = {record.id: record for record in self._records.values()}
        return [
            *map(self._damage, self._store.damage()),
            *(self._unstored(missing[id]) for id in self._missing if id in missing),
            *map(self._orphan, self._orphans),
            *(self._half_done(key, state) for key, state in self._store.half_done()),
            *(self._lost(key) for key in self._store.lost()),
            *map(_failed, self._store.failed()),
            *self._faults(),
        ]

    def _damage(self, text: str) -> Problem:
        if is_of_an_index(text):
            repair = Repair("makes the indexes anew", self._store.repair.reindex)
            return Problem("store", text, repair=repair)
        return Problem("store", text, "remove the snapshotter's directory, and pull again")

    def _unstored(self, record: Record) -> Problem:
        what = "its storage is gone"
        if fix := asks_containerd(record.info.name):
            return Problem(record.info.name, what, fix)
        if record.info.kind == Kind.COMMITTED:
            # All at once: what is unpacked again must not stand on another that is gone.
            return self._layer(record, what, lambda: self._give_up(self._missing))
        repair = Repair("removes its record", lambda: self._give_up([record.id]))
        return Problem(record.info.name, what, "", repair)

    def _lost(self, key: str) -> Problem:
        what = "its content is lost"
        record = self._records.get(key)
        if record is None:
            return Problem(key, what, "check again")  # lost since the list was made
        if fix := asks_containerd(key):
            return Problem(key, what, fix)
        return self._layer(record, what, lambda: None)

    def _layer(self, record: Record, what: str, give_up: Callable[[], None]) -> Problem:
        """Describe a Committed snapshot that has to be had from elsewhere, or to go."""
        key = record.info.name
        # Only what is called what it is can be made again by unpacking an image.
        is_layer = record.info.labels.get(SNAPSHOT_REF) == key
        origin = self._origin(key) if is_layer else None
        if origin is not None and origin.restore is not None:
            does = f"unpacks it again from the content of {origin.image}"
            return Problem(key, what, "", Repair(does, _both(give_up, origin.restore)))
        then = f"get it again: lamina images pull {origin.image}" if origin else ""
        if not self._store.repair.has_children(key):
            forget = _both(give_up, lambda: self._store.repair.forget_lost(key))
            return Problem(key, what, then, Repair("removes its record", forget))
        if origin is None:
            return Problem(key, what, "remove it and what stands on it; no image has it")
        if record.id not in self._missing:
            return Problem(key, what, then)
        return Problem(key, what, then, Repair("marks it as lost", give_up))

    def _give_up(self, ids: Iterable[int]) -> None:
        stored = set(self._driver.ids())
        self._store.repair.give_up([id for id in ids if id not in stored])

    def _orphan(self, id: int) -> Problem:
        what = "there is storage of this number but no snapshot"
        return Problem(str(id), what, "", Repair("removes it", lambda: self._free(id)))

    def _free(self, id: int) -> None:
        if self._store.trash.adopt_orphans([id]):
            self._reaper.free(id)

    def _half_done(self, key: str, state: str) -> Problem:
        what = f"the process that was {state} it has died"
        return Problem(key, what, "", Repair("undoes that", self._store.recover))

    def damage(self) -> Iterator[Problem]:
        if isinstance(self._driver, Thorough):
            yield from self._of_whole(self._driver.damage(self._exists))

    def _faults(self) -> Iterator[Problem]:
        if isinstance(self._driver, Inspectable):
            yield from self._of_whole(self._driver.faults(self._exists))

    def _of_whole(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        """Leave out what is half made, or waits to be freed: that need not be whole."""
        found = list(problems)
        whole = {str(id) for id in self._store.complete_ids()}
        yield from (p for p in found if p.subject in whole or not p.subject.isdecimal())

    def _exists(self, id: int) -> bool:
        return id in self._store.ids() or id in self._store.trash.ids()


def _both(first: Callable[[], object], second: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        first()
        second()

    return run


def _failed(key: str) -> Problem:
    what = "the disk has failed to write it: the next start of the machine drops it"
    return Problem(key, what, "see dmesg, remove it and what stands on it, then pull again")
