"""One request to a registry: redirects, logging in, and what its refusals mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

import msgspec
import urllib3

from lamina.errors import LaminaError, NotFound, PermissionDenied, Unauthenticated, Unavailable
from lamina.images.reference import Reference
from lamina.images.registry.auth import Authorizer, login_hint
from lamina.images.registry.body import read_small
from lamina.images.registry.connections import Connections
from lamina.images.registry.credentials import CredentialStore
from lamina.images.registry.failure import Failure
from lamina.images.registry.hosts import Endpoint
from lamina.images.registry.retry import parse_retry_after
from lamina.images.registry.urls import join_url

MAX_REDIRECTS = 8
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
_SERVED = frozenset({200, 206, 416})
_CHANGED = frozenset({200, 201, 202, 204})
_FOR_ANY_HOST = ("Accept", "Range")
"""Request headers that are sent along to a host that a redirect leads to."""
_SMALL = 64 << 10
"""Bytes read of an error page, so that its connection can be used again."""
_TOKEN_LIMIT = 1 << 20


class _ErrorItem(msgspec.Struct):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct):
    errors: list[_ErrorItem] = []


class Requests:
    """Sends requests with the Authorization that each host asks for."""

    def __init__(self, connections: Connections, credentials: CredentialStore) -> None:
        self._connections = connections
        self._authorizer = Authorizer(credentials, self._fetch_token)

    def open(
        self,
        endpoint: Endpoint,
        ref: Reference,
        method: str,
        path: str,
        headers: Mapping[str, str],
        what: str,
    ) -> urllib3.BaseHTTPResponse:
        """Return a successful answer, or a 416, for the caller to close.

        `path` is below the repository, such as `manifests/latest`; `what` is for errors.

        Raises:
            Failure: anything else.
        """
        return self.locate(endpoint, ref, method, path, headers, what)[0]

    def locate(
        self,
        endpoint: Endpoint,
        ref: Reference,
        method: str,
        path: str,
        headers: Mapping[str, str],
        what: str,
        seconds: float | None = None,
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Do as `open`, and return with the answer the URL of another host that it came from.

        It is "" for an answer of the endpoint's own; else it may have a secret in its query.
        `seconds` bounds every wait for the network.

        Raises:
            Failure: as `open`.
        """
        url = f"{endpoint.url}/{ref.repository}/{path}{endpoint.query}"
        authorization = self._authorizer.header(endpoint, ref.repository)
        answer, other = self._follow(endpoint, method, url, headers, authorization, seconds)
        if answer.status == 401 and not other:
            challenges = answer.headers.getlist("WWW-Authenticate")
            _drop(answer)
            authorization = self._authorizer.challenged(
                endpoint, ref.repository, authorization, challenges
            )
            answer, other = self._follow(endpoint, method, url, headers, authorization, seconds)
        if answer.status in _SERVED:
            return answer, other
        raise _refusal(answer, endpoint, ref, what)

    def reopen(
        self,
        endpoint: Endpoint,
        url: str,
        headers: Mapping[str, str],
        seconds: float | None = None,
    ) -> urllib3.BaseHTTPResponse | None:
        """Get a URL that `locate` returned; None if it gives nothing any more, as signed ones do.

        Raises:
            Failure: the host cannot be reached, or is busy.
        """
        answer = self._connections.send(endpoint, "GET", url, headers, seconds=seconds)
        if answer.status in _SERVED:
            return answer
        if answer.status not in _MAY_PASS:
            _drop(answer)
            return None
        with closing(answer):
            raise _passing(f"fetch from {urlsplit(url).netloc}: answered {answer.status}", answer)

    def change(
        self,
        endpoint: Endpoint,
        ref: Reference,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Callable[[], bytes | BinaryIO] | None,
        what: str,
    ) -> urllib3.BaseHTTPResponse:
        """Return a successful answer to what changes the repository, for the caller to close.

        Args:
            endpoint: the host.
            ref: names the repository.
            method: `POST`, `PUT`, ...
            path: below the repository, or where a Location header leads.
            headers: the request's own.
            body: gives it, each time that it has to be sent; files are closed here.
            what: for errors.

        Raises:
            Failure: anything but success.
        """
        base = f"{endpoint.url}/{ref.repository}/"
        url = _own(endpoint, join_url(base, path))
        if not url:
            raise _unusable(endpoint, f"sends uploads to {path[:200]!r}")
        own = urlsplit(url).netloc == endpoint.host
        if own and endpoint.query:
            url += endpoint.query if "?" not in url else "&" + endpoint.query[1:]
        authorization = self._authorizer.header(endpoint, ref.repository) if own else ""
        answer = self._send(endpoint, method, url, headers, authorization, body, own)
        if answer.status == 401 and own:
            challenges = answer.headers.getlist("WWW-Authenticate")
            _drop(answer)
            authorization = self._authorizer.challenged(
                endpoint, ref.repository, authorization, challenges
            )
            answer = self._send(endpoint, method, url, headers, authorization, body, own)
        if answer.status in _CHANGED:
            return answer
        raise _refusal(answer, endpoint, ref, what, "to")

    def _send(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: Mapping[str, str],
        authorization: str,
        body: Callable[[], bytes | BinaryIO] | None,
        own: bool,
    ) -> urllib3.BaseHTTPResponse:
        """Send it once; another host is told nothing that is meant for the endpoint alone."""
        sent = urllib3.HTTPHeaderDict(endpoint.headers if own else ())
        sent.update(headers)
        if authorization:
            sent["Authorization"] = authorization
        content = body() if body is not None else None
        try:
            return self._connections.send(endpoint, method, url, sent, content)
        finally:
            if content is not None and not isinstance(content, bytes):
                content.close()

    def _follow(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: Mapping[str, str],
        authorization: str,
        seconds: float | None,
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Return the answer at the end of all redirects, and its URL if it is another host's.

        Once a redirect leaves the host, nothing that is meant for it alone is sent any more.
        """
        sent = urllib3.HTTPHeaderDict(endpoint.headers)
        sent.update(headers)
        if authorization:
            sent["Authorization"] = authorization
        origin = _origin(url)
        other = ""
        for _ in range(MAX_REDIRECTS):
            answer = self._connections.send(endpoint, method, url, sent, seconds=seconds)
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or not location:
                return answer, other and url
            _drop(answer)
            url = join_url(url, location)
            if not url:
                raise _unusable(endpoint, f"redirects to {location[:200]!r}")
            if _origin(url) != origin:
                other = url
                sent = urllib3.HTTPHeaderDict(
                    (name, sent[name]) for name in _FOR_ANY_HOST if name in sent
                )
        raise _unusable(endpoint, f"redirects more than {MAX_REDIRECTS} times")

    def _fetch_token(
        self, endpoint: Endpoint, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> bytes:
        """Ask a token server; it may be a host of its own, so the endpoint's headers stay here."""
        host = urlsplit(url).netloc
        with closing(self._connections.send(endpoint, method, url, headers, body)) as answer:
            data = read_small(answer, _TOKEN_LIMIT)
            if answer.status == 200:
                return data
            what = f"log in to {endpoint.host}: {host} answered {answer.status}{_said(data)}"
            if answer.status in _MAY_PASS:
                raise _passing(what, answer)
            raise Failure(Unauthenticated(what, hint=login_hint(endpoint)))


def _refusal(
    answer: urllib3.BaseHTTPResponse,
    endpoint: Endpoint,
    ref: Reference,
    what: str,
    direction: str = "from",
) -> Failure:
    """Return what an unsuccessful answer means."""
    with closing(answer):
        detail = _said(read_small(answer, _SMALL))
    status = answer.status
    text = f"{what} {direction} {endpoint.host}: answered {status}{detail}"
    if status in _MAY_PASS:
        return _passing(text, answer)
    error: LaminaError
    if status == 401:
        error = Unauthenticated(text, hint=login_hint(endpoint))
    elif status == 403:
        error = PermissionDenied(text, hint=login_hint(endpoint))
    elif status == 404:
        has = f"check that {ref.name} has {ref.object}"
        takes = f"check that {ref.name} takes what is pushed"
        error = NotFound(text, hint=has if direction == "from" else takes)
    else:
        error = Unavailable(text)
    return Failure(error)


def _passing(text: str, answer: urllib3.BaseHTTPResponse) -> Failure:
    hint = "its rate limit is used up: log in, or wait" if answer.status == 429 else ""
    after = parse_retry_after(answer.headers.get("Retry-After"))
    return Failure(Unavailable(text, hint=hint), transient=True, retry_after=after)


def _unusable(endpoint: Endpoint, reason: str) -> Failure:
    return Failure(Unavailable(f"use registry {endpoint.host}: it {reason}"))


def _said(body: bytes) -> str:
    """Return what a registry's JSON error says, printable, or "" for anything else."""
    try:
        errors = msgspec.json.decode(body, type=_ErrorBody).errors
    except msgspec.MsgspecError:
        return ""
    text = ", ".join(f"{item.code}: {item.message}".strip(": ") for item in errors)
    clean = "".join(c for c in text[:300] if c.isprintable())
    return f" ({clean})" if clean else ""


def _own(endpoint: Endpoint, url: str) -> str:
    """Return a URL of the endpoint's host with its scheme: those behind TLS proxies say http."""
    parts = urlsplit(url)
    if parts.netloc != endpoint.host:
        return url
    return urlunsplit(parts._replace(scheme=endpoint.scheme))


def _drop(answer: urllib3.BaseHTTPResponse) -> None:
    """Read the rest of a small body, so that the connection can be used again."""
    with closing(answer):
        read_small(answer, _SMALL)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
