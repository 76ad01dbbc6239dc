"""Compares a snapshotter's store with the disk."""

from __future__ import annotations

from lamina.core.driver import Driver
from lamina.core.problem import CLEAN_UP, Problem
from lamina.meta.snapshots import SnapshotStore


def check(store: SnapshotStore, driver: Driver) -> list[Problem]:
    """Return every problem; see `Engine.fsck`.

    A snapshot has a row before, and a row or an entry in the trash as long as, it has storage. So
    with the rows read before and after the disk, whatever is made or removed meanwhile is told
    from what is wrong.
    """
    before = store.complete_ids()
    stored = set(driver.ids())
    after = store.complete_ids()
    missing = sorted((before.keys() & after.keys()) - stored)
    orphans = sorted(stored - store.ids().keys() - store.trash.ids())
    return [
        *(Problem("store", text, "remove the snapshotter's directory") for text in store.damage()),
        *(_missing(after[id]) for id in missing),
        *(_orphan(id) for id in orphans if id in set(driver.ids())),
        *(_half_done(key, state) for key, state in store.half_done()),
        *(_lost(key) for key in store.lost()),
        *(_failed(key) for key in store.failed()),
    ]


def _missing(key: str) -> Problem:
    return Problem(key, "its storage is gone", "remove it and what stands on it, then pull again")


def _orphan(id: int) -> Problem:
    return Problem(str(id), "there is storage of this number but no snapshot", CLEAN_UP)


def _half_done(key: str, state: str) -> Problem:
    return Problem(key, f"the process that was {state} it has died", CLEAN_UP)


def _lost(key: str) -> Problem:
    what = "it was not yet on disk when the machine lost power, and other snapshots stand on it"
    return Problem(key, what, "pull its image again, or remove it and what stands on it")


def _failed(key: str) -> Problem:
    what = "the disk has failed to write it: the next start of the machine drops it"
    return Problem(key, what, "see dmesg, remove it and what stands on it, then pull again")
