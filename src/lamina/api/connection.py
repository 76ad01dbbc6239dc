"""One client's connection to the server: from its greeting to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from lamina.api.http2 import ConnectionFault
from lamina.api.session import GREETING, Session
from lamina.linux.peer import peer_pid

if TYPE_CHECKING:
    from lamina.api.dispatch import Dispatcher

log = logging.getLogger(__name__)

PREFACE_SECONDS = 10.0
"""A client that has not introduced itself by then is sent away."""

_HEARD_SECONDS = 0.5
"""How long a client may take to say that it has heard of the end."""
_CLOSE_SECONDS = 5.0
"""How long a client may take to read what is left, once we have nothing more to say."""


class Connection(asyncio.Protocol):
    """The socket, and when it is read, written and closed; what is said is the `Session`'s."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._loop = asyncio.get_running_loop()
        self._session = Session(dispatcher, write=self._write, finished=self._close)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_waiting = True  # for the client to introduce itself
        self._is_closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._session.peer = peer_pid(transport.get_extra_info("socket"))
        if not self._dispatcher.add(self):
            log.warning("connection refused: too many of them, or the server is stopping")
            transport.abort()
            return
        self._set_timer(PREFACE_SECONDS, self._send_away)
        self._write(GREETING)

    def data_received(self, data: bytes) -> None:
        """Take what has come, and answer all of it in one write."""
        if self._is_closing:
            return
        try:
            self._session.take(data)
        except ConnectionFault as fault:
            log.warning("connection closed: %s", fault)
            self._session.give_up(fault)
            self._close()
            return
        if self._is_waiting and self._session.is_introduced:
            self._is_waiting = False
            self._cancel_timer()
        self._session.flush()

    def pause_writing(self) -> None:
        """Do nothing more for a client that does not read what it has got already."""
        self._session.sender.paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        sender = self._session.sender
        sender.paused = False
        sender.pump()
        self._session.flush()
        if self._transport is not None and not sender.paused:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel the client's calls."""
        self._transport = None
        self._is_closing = True
        self._cancel_timer()
        self._session.abandon_all()
        self._dispatcher.discard(self)

    def drain(self) -> None:
        """Take no new calls, and close when the running ones have ended.

        The client is told twice: what it has sent before it hears of it is still answered. It
        answers a ping then, unless it is one that does not listen between its calls.
        """
        if self._is_waiting:
            self._close()
        elif not self._is_closing:
            self._session.announce_goodbye()
            self._session.flush()
            self._set_timer(_HEARD_SECONDS, self._say_goodbye)

    def break_off(self) -> None:
        """End all calls with UNAVAILABLE, and close."""
        self._session.break_off()
        self._close()

    def _say_goodbye(self) -> None:
        self._session.say_goodbye()
        self._session.flush()

    def _send_away(self) -> None:
        log.warning("connection closed: no HTTP/2 preface within %.0f s", PREFACE_SECONDS)
        self._close()

    def _close(self) -> None:
        """Close once everything is written, or a bit later if the client does not read it."""
        if self._is_closing:
            return
        self._is_closing = True
        self._session.sender.flush()
        if self._transport is not None:
            self._transport.close()
            self._set_timer(_CLOSE_SECONDS, self._transport.abort)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(seconds, action)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
