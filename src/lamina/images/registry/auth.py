"""Logging in: Basic, and Bearer tokens from a token server.

Source: distribution `docs/spec/auth/token.md` and `oauth.md`, RFC 9110 section 11, RFC 6750.
A credential goes only to the host it is for and to the token server that this host names, and
there only by https, unless the host itself is spoken to by plain http.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from lamina.errors import Unauthenticated
from lamina.images.registry.credentials import Credential, CredentialStore
from lamina.images.registry.failure import Failure
from lamina.images.registry.hosts import Endpoint
from lamina.images.registry.proxies import is_loopback
from lamina.images.registry.urls import split_url

CLIENT_ID = "lamina"
DEFAULT_TOKEN_SECONDS = 60.0
"""Life of a token whose server does not say (`docs/spec/auth/token.md`)."""
_MARGIN_SECONDS = 5.0
"""A token this close to its end may be too old when it arrives."""

_TOKEN = re.compile(
    r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))|([a-zA-Z][a-zA-Z0-9-]*)', re.ASCII
)
"""A parameter (name, quoted or bare value), or else the name of a scheme."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme of a WWW-Authenticate header."""

    scheme: str
    realm: str
    service: str
    scope: str


class Fetch(Protocol):
    """Asks a token server; the client provides it."""

    def __call__(
        self, endpoint: Endpoint, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> bytes:
        """Return the body of a successful answer.

        Raises:
            Failure: no answer, or not a successful one.
        """
        ...


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class _Grant:
    """An Authorization header, until when to use it, and how to get the next."""

    header: str
    expires: float
    challenge: Challenge

    def __repr__(self) -> str:
        return f"_Grant({self.challenge.scheme})"


class Authorizer:
    """Keeps the Authorization headers of all hosts and repositories; safe to share by threads."""

    def __init__(
        self,
        credentials: CredentialStore,
        fetch: Fetch,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._fetch = fetch
        self._clock = clock
        self._grants: dict[tuple[str, str], _Grant] = {}
        self._lock = threading.Lock()
        self._busy: dict[tuple[str, str], threading.Lock] = {}

    def header(self, endpoint: Endpoint, repository: str) -> str:
        """Return the Authorization header to send, "" before the host asked for one.

        Raises:
            Failure: the old token has expired and there is no new one.
        """
        key = (endpoint.url, repository)
        grant = self._grants.get(key)
        if grant is None:
            return ""
        if self._clock() < grant.expires:
            return grant.header
        return self._renew(endpoint, repository, grant.header, grant.challenge)

    def challenged(
        self, endpoint: Endpoint, repository: str, refused: str, values: Sequence[str]
    ) -> str:
        """Return a new header after a 401; `refused` is the header that was sent.

        Raises:
            Failure: there is no credential, or it is wrong.
        """
        challenge = choose(values)
        if challenge is None:
            raise _denied(endpoint, f"{endpoint.host} asks for a login that is not Basic or Bearer")
        return self._renew(endpoint, repository, refused, challenge)

    def _renew(
        self, endpoint: Endpoint, repository: str, refused: str, challenge: Challenge
    ) -> str:
        """Log in once for all threads that wait for the same."""
        key = (endpoint.url, repository)
        with self._lock:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            grant = self._grants.get(key)
            if grant is not None and grant.header != refused:
                return grant.header
            grant = self._log_in(endpoint, repository, challenge)
            self._grants[key] = grant
            return grant.header

    def _log_in(self, endpoint: Endpoint, repository: str, challenge: Challenge) -> _Grant:
        credential = self._credentials.find(endpoint)
        if challenge.scheme == "basic":
            if credential is None or not credential.secret:
                raise _denied(endpoint, f"{endpoint.host} asks for a user and a password")
            return _Grant(_basic(credential), float("inf"), challenge)
        answer = self._token(endpoint, repository, challenge, credential)
        token = answer.token or answer.access_token or ""
        if not token or not token.isascii() or not token.isprintable():
            raise _denied(endpoint, f"{challenge.realm} gave no token")
        life = DEFAULT_TOKEN_SECONDS if answer.expires_in is None else answer.expires_in
        expires = self._clock() + life - min(_MARGIN_SECONDS, life / 2)
        return _Grant(f"Bearer {token}", expires, challenge)

    def _token(
        self,
        endpoint: Endpoint,
        repository: str,
        challenge: Challenge,
        credential: Credential | None,
    ) -> _TokenAnswer:
        _check_realm(endpoint, challenge.realm, credential)
        fields = {"scope": challenge.scope or f"repository:{repository}:pull"}
        if challenge.service:
            fields["service"] = challenge.service
        fields["client_id"] = CLIENT_ID
        headers: dict[str, str] = {}
        if credential is not None and credential.identity_token:
            fields |= {
                "grant_type": "refresh_token",
                "refresh_token": credential.identity_token,
            }
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = urlencode(fields).encode()
            data = self._fetch(endpoint, "POST", challenge.realm, headers, body)
        else:
            if credential is not None:
                headers["Authorization"] = _basic(credential)
                fields["account"] = credential.username
            url = _with_query(challenge.realm, fields)
            data = self._fetch(endpoint, "GET", url, headers, b"")
        try:
            return msgspec.json.decode(data, type=_TokenAnswer)
        except msgspec.MsgspecError as error:
            raise _denied(endpoint, f"{challenge.realm} gave no token ({error})") from error


def choose(values: Sequence[str]) -> Challenge | None:
    """Return the challenge to answer among those of all WWW-Authenticate headers: Bearer first."""
    challenges = [challenge for value in values for challenge in _parse(value)]
    bearers = (c for c in challenges if c.scheme == "bearer" and c.realm)
    basics = (c for c in challenges if c.scheme == "basic")
    return next(bearers, None) or next(basics, None)


def _parse(value: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    for name, quoted, bare, scheme in _TOKEN.findall(value):
        if scheme:
            found.append((scheme.lower(), {}))
        elif found:
            found[-1][1][name.lower()] = re.sub(r"\\(.)", r"\1", quoted) or bare
    return [
        Challenge(scheme, *(fields.get(name, "") for name in ("realm", "service", "scope")))
        for scheme, fields in found
    ]


def _check_realm(endpoint: Endpoint, realm: str, credential: Credential | None) -> None:
    parts = split_url(realm)
    if parts is None:
        raise _denied(endpoint, f"{endpoint.host} names {realm!r} as its token server")
    plain = endpoint.scheme == "http" or is_loopback(parts.hostname or "")
    if parts.scheme == "http" and credential is not None and not plain:
        raise _denied(endpoint, f"refusing to send a password to {realm} by plain http")


def _with_query(url: str, fields: dict[str, str]) -> str:
    parts = urlsplit(url)
    query = parse_qsl(parts.query) + list(fields.items())
    return urlunsplit(parts._replace(query=urlencode(query)))


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.secret}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def _denied(endpoint: Endpoint, reason: str) -> Failure:
    return Failure(
        Unauthenticated(f"log in to {endpoint.host}: {reason}", hint=login_hint(endpoint))
    )


def login_hint(endpoint: Endpoint) -> str:
    """Say how to give a credential."""
    return f"use --user NAME, or run: docker login {endpoint.namespace}"
