"""Frees the storage of snapshots that are gone, outside every lock, in any number of processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from lamina.core.cancel import check_cancelled, is_cancelled
from lamina.core.driver import Driver
from lamina.errors import LaminaError
from lamina.meta.trash import Trash

log = logging.getLogger(__name__)

BATCH = 32
"""Ids that are claimed, and forgotten, in one transaction."""
POLL_SECONDS = 0.02
LONGEST_REST_SECONDS = 1.0

Failures = dict[int, Exception]


class Reaper:
    """Destroys what is in the trash of one snapshotter."""

    def __init__(self, driver: Driver, trash: Trash) -> None:
        self._driver = driver
        self._trash = trash

    def reap(self, *, stop: Callable[[], bool], rest: float) -> int:
        """Destroy what nobody else is destroying; return how much. See `Engine.reap`."""
        failures: Failures = {}
        claimed = 0
        while not stop():
            ids = self._trash.claim(BATCH, besides=failures.keys())
            if not ids:
                break
            claimed += len(ids)
            failures |= self.destroy(ids, stop=stop, rest=rest)
        return claimed - len(failures)

    def free(self, id: int) -> None:
        """Destroy one id of the trash now, or wait for whoever is at it."""
        while not self._trash.claim_one(id):
            if id not in self._trash.ids():
                return
            time.sleep(POLL_SECONDS)
        self.destroy([id])

    def drain(self) -> None:
        """Destroy all that is in the trash now, and wait for what others are destroying.

        What fails is tried again once more is gone: the storage of a child, which another process
        is destroying, may have stood on it.

        Raises:
            LaminaError: some of it cannot be destroyed.
            Cancelled, DeadlineExceeded: see `check_cancelled`; the rest stays in the trash.
        """
        wanted = self._trash.ids()
        failures: Failures = {}
        progress = False
        while wanted - failures.keys():
            check_cancelled()
            ids = self._trash.claim(BATCH, besides=failures.keys())
            if ids:
                failures |= self.destroy(ids, stop=is_cancelled)
            else:
                time.sleep(POLL_SECONDS)
            left = self._trash.ids()
            progress |= not wanted <= left
            wanted &= left
            if progress and wanted <= failures.keys():
                failures, progress = {}, False
        if failures:
            id, error = next(iter(failures.items()))
            what = f"free the storage of {len(failures)} removed snapshots, such as number {id}"
            hint = getattr(error, "hint", "")
            raise LaminaError(f"{what}: {_reason(error)}", hint=hint) from error

    def destroy(
        self, ids: Sequence[int], *, stop: Callable[[], bool] = lambda: False, rest: float = 0
    ) -> Failures:
        """Destroy ids that are claimed; return those that failed, which are free to claim again.

        Once `stop` says so, the others are given back as well.
        """
        failures: Failures = {}
        gone: list[int] = []
        try:
            for id in ids:
                if stop():
                    break
                started = time.monotonic()
                try:
                    self._driver.destroy(id)
                except (LaminaError, OSError) as error:
                    failures[id] = error
                    log.warning("cannot free storage of removed snapshot %d: %s", id, error)
                    continue
                gone.append(id)
                if rest:
                    took = time.monotonic() - started
                    time.sleep(min(took * rest, LONGEST_REST_SECONDS))
        finally:
            self._trash.settle(gone, [id for id in ids if id not in gone])
        return failures


def _reason(error: Exception) -> str:
    return error.what if isinstance(error, LaminaError) else str(error)
