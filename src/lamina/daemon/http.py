"""Serves the metrics by HTTP: one page, to whoever asks, and nothing else to anybody.

A request is read up to a limit, for a limited time, on a limited number of connections, and every
connection is closed after one answer. The page is made at most once a second.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus

log = logging.getLogger(__name__)

PATH = "/v1/metrics"
_LONGEST_REQUEST = 8192
_REQUEST_SECONDS = 5.0
_CONNECTIONS = 32
_FRESH_SECONDS = 1.0


class MetricsServer:
    """Answers `GET /v1/metrics`.

    Args:
        page: makes the page; called in a thread of its own.
        content_type: of the page.
    """

    def __init__(self, page: Callable[[], bytes], content_type: str) -> None:
        self._page = page
        self._content_type = content_type
        self._cached = b""
        self._cached_at = float("-inf")
        self._connections = 0
        self._servers: list[asyncio.Server] = []
        # One thread, so that slow stores hold up no more than the next page.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        """Accept connections on these listening sockets, until `close`."""
        for listener in listeners:
            # Also for unix sockets: a server made for those removes paths that are not its own.
            self._servers.append(
                await asyncio.start_server(self._serve, sock=listener, limit=_LONGEST_REQUEST)
            )

    def close(self) -> None:
        """Accept no more connections; a page that is being made is made in vain."""
        for server in self._servers:
            server.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with self._counted() as few:
                answer = await self._answer(reader) if few else _error(503)
                writer.write(answer)
                async with asyncio.timeout(_REQUEST_SECONDS):
                    await writer.drain()
                    writer.write_eof()
        except (OSError, TimeoutError):
            pass  # whoever asked is gone
        finally:
            writer.close()

    @contextmanager
    def _counted(self) -> Iterator[bool]:
        """Count a connection during the body; false where there are too many."""
        self._connections += 1
        try:
            yield self._connections <= _CONNECTIONS
        finally:
            self._connections -= 1

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            return _error(408)
        except asyncio.IncompleteReadError:
            return _error(400)
        except asyncio.LimitOverrunError:
            return _error(431)
        method, path = _request(head)
        if not method:
            return _error(400)
        if path.partition("?")[0] != PATH:
            return _error(404)
        if method not in {"GET", "HEAD"}:
            return _error(405, "Allow: GET, HEAD\r\n")
        try:
            page = await self._fresh_page()
        except Exception:  # whatever it is, the next scrape may succeed
            log.exception("cannot make the metrics page")
            return _error(500)
        return _response(200, self._content_type, page, with_body=method == "GET")

    async def _fresh_page(self) -> bytes:
        if time.monotonic() - self._cached_at > _FRESH_SECONDS:
            loop = asyncio.get_running_loop()
            self._cached = await loop.run_in_executor(self._thread, self._page)
            self._cached_at = time.monotonic()
        return self._cached


def _request(head: bytes) -> tuple[str, str]:
    """Return method and path of a request; empty where it is none of HTTP/1."""
    words = head.partition(b"\r\n")[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1.") or not words[0].isalpha():
        return "", ""
    return words[0].decode("ascii"), words[1].decode("latin-1")


def _error(status: int, headers: str = "") -> bytes:
    text = f"{status} {HTTPStatus(status).phrase}\n".encode()
    return _response(status, "text/plain; charset=utf-8", text, headers=headers)


def _response(
    status: int, content_type: str, body: bytes, *, headers: str = "", with_body: bool = True
) -> bytes:
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{headers}Connection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
