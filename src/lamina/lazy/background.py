"""Fetching for one layer what nobody waits for, and taking it up again after it has failed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal, NamedTuple

from lamina.core.cancel import CancelToken, cancellable
from lamina.errors import Cancelled
from lamina.lazy.gates import Filler
from lamina.lazy.served import Wish

log = logging.getLogger(__name__)

Stage = Literal["", "first", "all", "paused"]
"""What is being fetched; `paused` after a failure."""

SHORTEST_PAUSE = 5.0
LONGEST_PAUSE = 300.0
"""Seconds from a failure to the next attempt; they double unless something came in between."""


class Progress(NamedTuple):
    """How the work stands.

    Attributes:
        stage: what is being fetched.
        reason: why it has paused.
        resume_seconds: when it will go on.
    """

    stage: Stage = ""
    reason: str = ""
    resume_seconds: float = 0.0


class Background:
    """The work of one layer. Safe to use from any thread.

    Args:
        filler: of the layer.
        keep: called with each change of what is wished for, to keep it beyond this process.
    """

    def __init__(self, filler: Filler, keep: Callable[[Wish], None]) -> None:
        self._filler = filler
        self._keep = keep
        self._lock = threading.Condition()
        self._wish: Wish = ""
        self._stage: Stage = ""
        self._reason = ""
        self._resume = 0.0
        self._asked = 0
        self._at_once = False
        self._token = CancelToken()
        self._running = False
        self._closed = False
        self._attempt: Future[None] = Future()

    def begin(self, wish: Wish, *, at_once: bool = False) -> Future[None]:
        """Have this fetched too, from now on; return how the attempt ends that does it.

        What is wanted first is looked up anew, and comes before what is under way. A pause ends.
        The future is for `wish`, and for whatever was wished for before. Its thread is a daemon.

        Args:
            wish: what.
            at_once: without giving way to readers, since somebody waits for it as well.
        """
        with self._lock:
            self._at_once |= at_once
            if self._wish != "all" and self._wish != wish:
                self._change(wish)
            self._asked += 1
            self._token.cancel()
            self._lock.notify_all()
            if self._attempt.done():
                self._attempt = Future()
            if not self._running and not self._closed:
                self._running = True
                threading.Thread(target=self._run, name="background", daemon=True).start()
            return self._attempt

    @property
    def progress(self) -> Progress:
        """How it stands."""
        with self._lock:
            left = max(0.0, self._resume - time.monotonic()) if self._stage == "paused" else 0.0
            return Progress(self._stage, self._reason, left)

    @property
    def is_under_way(self) -> bool:
        """Whether something is still to be fetched."""
        with self._lock:
            return self._running

    def close(self) -> None:
        """Have it end; what was wished for stays kept."""
        with self._lock:
            self._closed = True
            self._token.cancel()
            self._lock.notify_all()

    def _run(self) -> None:
        pause = SHORTEST_PAUSE
        while (asked := self._begin_attempt()) is not None:
            before = self._filler.local_bytes
            try:
                self._fetch()
            except Cancelled:
                continue  # more was asked for, or it is closed
            except Exception as error:
                if self._filler.local_bytes > before:
                    pause = SHORTEST_PAUSE
                self._pause(error, pause, asked)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if self._finish(asked):
                    return

    def _begin_attempt(self) -> int | None:
        """Return the number of the last wish; None when there will be no more attempts."""
        with self._lock:
            if self._closed:
                self._running = False
                self._settle(Cancelled("fetch in the background"))
                return None
            self._token = CancelToken()
            self._stage = "first"
            return self._asked

    def _fetch(self) -> None:
        with cancellable(self._token):
            self._filler.fetch_wanted()
            with self._lock:
                if self._wish != "all":
                    return
                self._stage = "all"
                at_once = self._at_once
            self._filler.complete(at_once=at_once)

    def _pause(self, error: Exception, seconds: float, asked: int) -> None:
        log.warning("cannot complete %s, trying again in %.0f s: %s",
                    self._filler.data_path, seconds, error)  # fmt: skip
        with self._lock:
            self._stage, self._reason = "paused", str(error)
            self._resume = time.monotonic() + seconds
            self._settle(error)
            self._lock.wait_for(lambda: self._closed or self._asked != asked, seconds)

    def _finish(self, asked: int) -> bool:
        """End, unless more was asked for meanwhile."""
        with self._lock:
            if self._closed or self._asked != asked:
                return False
            self._running = self._at_once = False
            self._stage, self._reason = "", ""
            self._settle(None)
            self._change("")
            return True

    def _change(self, wish: Wish) -> None:
        self._wish = wish
        try:
            self._keep(wish)
        except OSError as error:  # a full disk; it goes on all the same
            log.warning("cannot keep what to fetch: %s", error,
                        extra={"path": str(self._filler.data_path)})  # fmt: skip

    def _settle(self, error: Exception | None) -> None:
        if self._attempt.done():
            return
        if error is None:
            self._attempt.set_result(None)
        else:
            self._attempt.set_exception(error)
