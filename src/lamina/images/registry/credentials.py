"""Who to be at a registry: `--user`, then docker's configuration file and its credential helpers.

Nothing is kept: the file is read and helpers are asked again whenever a login is needed, so that
short-lived credentials are fresh. Source: docker CLI `cli/config` and docker-credential-helpers.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lamina.errors import ConfigError, ToolError, Unauthenticated
from lamina.images.reference import DOCKER_HUB
from lamina.images.registry.hosts import Endpoint
from lamina.tools.run import run

HELPER_SECONDS = 60.0
_HUB_KEY = "https://index.docker.io/v1/"
_HUB_ALIASES = ("index.docker.io", DOCKER_HUB, "registry-1.docker.io")
_TOKEN_USER = "<token>"
_NO_CREDENTIALS = "credentials not found in native keychain"
_HELPER_HINT = "use --user NAME, or repair credsStore and credHelpers in docker's config.json"


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and a password, or an identity (refresh) token with or without a name."""

    username: str
    secret: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = msgspec.field(default="", name="identitytoken")


class _DockerConfig(msgspec.Struct, rename="camel"):
    auths: dict[str, _Auth] = {}
    creds_store: str = ""
    cred_helpers: dict[str, str] = {}


class _HelperAnswer(msgspec.Struct, rename="pascal"):
    username: str
    secret: str


class CredentialStore:
    """Finds the credential for a host.

    Args:
        user: what the caller was given for the registry itself; never sent to its mirrors.
        docker_config: a docker `config.json`; need not exist.
    """

    def __init__(
        self, *, user: Credential | None = None, docker_config: Path | None = None
    ) -> None:
        self._user = user
        self._docker_config = docker_config

    def find(self, endpoint: Endpoint) -> Credential | None:
        """Return what to log in with at an endpoint, or None for an anonymous visit.

        Raises:
            ConfigError: the docker configuration cannot be read.
            Unauthenticated: a credential helper failed.
        """
        if self._user is not None and not endpoint.mirror:
            return self._user
        config = self._load()
        names = _names(endpoint)
        for helper, key in _helpers(config, names):
            if (credential := _ask(helper, key)) is not None:
                return credential
        entries = {_bare(key): entry for key, entry in config.auths.items()}
        found = (entries[name] for name in names if name in entries)
        return next((c for entry in found if (c := self._decode(entry))), None)

    def _load(self) -> _DockerConfig:
        if self._docker_config is None:
            return _DockerConfig()
        try:
            data = self._docker_config.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return _DockerConfig()
        except OSError as error:
            raise ConfigError(self._docker_config, [error.strerror or str(error)]) from error
        try:
            return msgspec.json.decode(data, type=_DockerConfig)
        except msgspec.MsgspecError as error:
            raise ConfigError(self._docker_config, [str(error)]) from error

    def _decode(self, entry: _Auth) -> Credential | None:
        username, secret = entry.username, entry.password
        if entry.auth:
            try:
                pair = base64.b64decode(entry.auth, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                pair = ""
            username, colon, secret = pair.partition(":")
            if not colon:
                problem = "auths: an auth is not the base64 of USER:PASSWORD"
                raise ConfigError(self._docker_config, [problem])
        secret = secret.rstrip("\0")
        if not secret and not entry.identity_token:
            return None
        return Credential(username, secret, entry.identity_token)


def _names(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the names under which the endpoint's credential may be stored, best first."""
    names = [endpoint.host] if endpoint.mirror else [endpoint.host, endpoint.namespace]
    if any(name in _HUB_ALIASES for name in names):
        names += _HUB_ALIASES
    return tuple(dict.fromkeys(names))


def _bare(key: str) -> str:
    """Return the host of an `auths` key, which may be a URL."""
    return key.rpartition("://")[2].partition("/")[0]


def _helpers(config: _DockerConfig, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return (helper, what to ask it for), each once, in the order of `names`."""
    by_host = {_bare(key): helper for key, helper in config.cred_helpers.items()}
    asks = (
        (by_host.get(name, config.creds_store), _HUB_KEY if name in _HUB_ALIASES else name)
        for name in names
    )
    return [(helper, key) for helper, key in dict.fromkeys(asks) if helper]


def _ask(helper: str, key: str) -> Credential | None:
    """Run `docker-credential-HELPER get`; None if it has nothing for `key`.

    The protocol has helpers print their errors to standard output and exit with 1.
    """
    program = f"docker-credential-{helper}"
    try:
        done = run([program, "get"], input=key.encode(), timeout=HELPER_SECONDS, success=(0, 1))
    except ToolError as error:
        raise Unauthenticated(f"ask {program} about {key}: {error}", hint=_HELPER_HINT) from error
    said = done.stdout.decode(errors="replace").strip()
    if done.code != 0:
        if said == _NO_CREDENTIALS:
            return None
        reason = said or done.stderr.strip() or "it failed without a word"
        raise Unauthenticated(f"ask {program} about {key}: {reason[:300]}", hint=_HELPER_HINT)
    try:
        answer = msgspec.json.decode(done.stdout, type=_HelperAnswer)
    except msgspec.MsgspecError as error:
        raise Unauthenticated(
            f"ask {program} about {key}: its answer is no credential", hint=_HELPER_HINT
        ) from error
    if answer.username == _TOKEN_USER:
        return Credential("", identity_token=answer.secret)
    return Credential(answer.username, answer.secret)
