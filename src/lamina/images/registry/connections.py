"""Pools of HTTP connections, by how a host is to be spoken to; safe to share by threads."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPSConnection

from lamina.core.cancel import current_deadline
from lamina.errors import ConfigError, Unavailable
from lamina.images.registry.failure import Failure
from lamina.images.registry.hosts import TLS, Endpoint
from lamina.images.registry.proxies import Proxies
from lamina.version import VERSION

log = logging.getLogger(__name__)

USER_AGENT = f"lamina/{VERSION}"
_HOSTS = 16
_LEAST_SECONDS = 0.01
"""That are waited for where the deadline has passed: none is no timeout of urllib3."""


class Connections:
    """Sends requests.

    Args:
        proxies: which proxy to use where `hosts.toml` does not name one.
        read_timeout: longest silence, in seconds, before and within an answer.
        per_host: idle connections kept for each host.
    """

    def __init__(self, proxies: Proxies, read_timeout: float, per_host: int) -> None:
        self._proxies = proxies
        self._read_timeout = read_timeout
        self._per_host = per_host
        self._lock = threading.Lock()
        self._managers: dict[object, urllib3.PoolManager] = {}
        self._plain: set[str] = set()
        self._answered: set[str] = set()

    def send(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | BinaryIO | None = None,
        seconds: float | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Send one request and return the answer's head; redirects are not followed.

        A body that is a file needs its Content-Length among the headers.

        The caller closes the answer; one that was read to its end keeps its connection open.
        `seconds`, and the deadline of the context (`core.cancel`), make every wait for the network
        shorter than it is anyway.

        Raises:
            Failure: there is no answer.
            ConfigError: a certificate file cannot be used.
        """
        origin = f"https://{endpoint.host}/"
        if endpoint.host in self._plain and endpoint.plain_fallback and url.startswith(origin):
            url = f"http{url.removeprefix('https')}"
        manager = self._manager(endpoint, url)
        sent = urllib3.HTTPHeaderDict({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
        sent.update(headers)
        log.debug("%s %s", method, url.partition("?")[0])
        try:
            answer = manager.urlopen(
                method,
                url,
                body=body,
                headers=sent,
                timeout=self._timeout(endpoint, _until_deadline(seconds)),
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except exceptions.SSLError as error:
            if not endpoint.plain_fallback or not url.startswith(origin):
                raise self._failure(url, error) from error
            self._plain.add(endpoint.host)
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            return self.send(endpoint, method, url, headers, body, seconds)
        except exceptions.HTTPError as error:
            raise self._failure(url, error) from error
        self._answered.add(urlsplit(url).netloc)
        return answer

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            for manager in self._managers.values():
                manager.clear()

    def _timeout(self, endpoint: Endpoint, seconds: float | None) -> urllib3.Timeout:
        connect, read = endpoint.dial_timeout, self._read_timeout
        if seconds is not None:
            connect, read = min(connect, seconds), min(read, seconds)
        return urllib3.Timeout(connect=connect, read=read)

    def _manager(self, endpoint: Endpoint, url: str) -> urllib3.PoolManager:
        proxy = endpoint.proxy or self._proxies.for_url(url)
        secure = url.startswith("https:")
        key = (secure, endpoint.tls if secure else None, endpoint.dial_timeout, proxy)
        with self._lock:
            if key not in self._managers:
                self._managers[key] = self._new_manager(endpoint, proxy, secure)
            return self._managers[key]

    def _new_manager(self, endpoint: Endpoint, proxy: str, secure: bool) -> urllib3.PoolManager:
        context = _context(endpoint.tls) if secure else None
        timeout = self._timeout(endpoint, None)
        if proxy:
            manager: urllib3.PoolManager = urllib3.ProxyManager(
                proxy,
                _HOSTS,
                proxy_headers=_proxy_login(proxy),
                maxsize=self._per_host,
                timeout=timeout,
                ssl_context=context,
            )
        else:
            manager = urllib3.PoolManager(
                _HOSTS, maxsize=self._per_host, timeout=timeout, ssl_context=context
            )
        if endpoint.tls.skip_verify:
            manager.pool_classes_by_scheme = {
                "http": urllib3.HTTPConnectionPool,
                "https": _UnverifiedPool,
            }
        return manager

    def _failure(self, url: str, error: exceptions.HTTPError) -> Failure:
        """Tell which failures may pass. A host that never answered is not waited for."""
        host = urlsplit(url).netloc
        cause = error.args[0] if isinstance(error, exceptions.SSLError) and error.args else None
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Failure(
                Unavailable(
                    f"connect to {host}: its certificate is not trusted ({cause.verify_message})",
                    hint="name its authority with --tlscacert FILE or in hosts.toml",
                )
            )
        refusal = error.original_error if isinstance(error, exceptions.ProxyError) else error
        transient = True
        if isinstance(refusal, exceptions.NewConnectionError | exceptions.ConnectTimeoutError):
            asleep = getattr(refusal.__cause__, "errno", None) == socket.EAI_AGAIN
            transient = asleep or host in self._answered
        elif isinstance(error, exceptions.LocationValueError | exceptions.ProxySchemeUnknown):
            transient = False
        return Failure(Unavailable(f"connect to {host}: {reason(error)}"), transient=transient)


def _until_deadline(seconds: float | None) -> float | None:
    deadline = current_deadline()
    if deadline is None:
        return seconds
    left = max(deadline - time.monotonic(), _LEAST_SECONDS)
    return left if seconds is None else min(left, seconds)


class _UnverifiedConnection(HTTPSConnection):
    """Was asked for with `skip_verify`, so urllib3 need not warn of it at each connection."""

    def connect(self) -> None:
        super().connect()
        self.is_verified = True


class _UnverifiedPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _UnverifiedConnection


def reason(error: BaseException) -> str:
    """Return what urllib3 says, without the connection object that its texts begin with."""
    args = error.args or (type(error).__name__,)
    text = str(args[0]).rpartition("): ")[2]
    return f"{text} {args[-1]}" if len(args) > 1 and isinstance(args[-1], OSError) else text


def _context(tls: TLS) -> ssl.SSLContext:
    """Return what a server's certificate is checked against: the system's authorities and `ca`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_default_certs()
    for path in tls.ca:
        try:
            context.load_verify_locations(path)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(path, [f"no usable certificates: {error}"]) from error
    if tls.client is not None:
        try:
            context.load_cert_chain(*tls.client)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(tls.client[0], [f"no usable certificate and key: {error}"]) from error
    return context


def _proxy_login(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return dict(urllib3.make_headers(proxy_basic_auth=login))
