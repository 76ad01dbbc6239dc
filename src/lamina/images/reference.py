"""Image references: `HOST/REPOSITORY[:TAG][@DIGEST]`.

The grammar is that of the distribution project's `reference` package. Short names mean what they
mean to docker: `busybox` is `docker.io/library/busybox:latest`. A full reference with a tag or a
digest, which is all that `ctr` takes, is kept letter by letter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lamina.core.digest import Digest, parse_digest
from lamina.errors import InvalidArgument

DOCKER_HUB = "docker.io"
MAX_REPOSITORY = 255
"""Characters in the part between host and tag."""

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?", re.ASCII)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_IMAGE_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference: `host` is set, and at least one of `tag` and `digest`."""

    host: str
    repository: str
    tag: str
    digest: Digest | None

    @property
    def name(self) -> str:
        """`HOST/REPOSITORY`."""
        return f"{self.host}/{self.repository}"

    @property
    def object(self) -> str:
        """What a registry is asked for: the digest, or else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return self.name + self._suffix()

    def familiar(self) -> str:
        """Return the shortest form that parses to the same: `busybox:latest`."""
        if self.host != DOCKER_HUB:
            return str(self)
        short = self.repository.removeprefix("library/")
        name = self.repository if "/" in short else short
        if "/" in name and _can_be_host(name.partition("/")[0]):
            return str(self)
        return name + self._suffix()

    def with_digest(self, digest: Digest) -> Reference:
        """Return the same repository, pinned to `digest`."""
        return Reference(self.host, self.repository, "", digest)

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{tag}@{self.digest}" if self.digest else tag


def parse(text: str) -> Reference:
    """Return what `text` refers to; without tag and digest, the tag is `latest`.

    Raises:
        InvalidArgument: it breaks the grammar, or is an image id.
    """
    name, has_digest, digest_text = text.partition("@")
    name, tag = _split_tag(name)
    if tag is not None and _TAG.fullmatch(tag) is None:
        raise _invalid(text, f"a tag has 1 to 128 letters, digits and _.- but this one is {tag!r}")
    if _IMAGE_ID.fullmatch(name) is not None:
        raise _invalid(text, "64 hex digits are an image id; write NAME@sha256:DIGEST")
    host, repository = _split_host(name)
    _check_host(text, host)
    _check_repository(text, repository)
    digest = _digest(text, digest_text) if has_digest else None
    if tag is None and digest is None:
        tag = "latest"
    return Reference(host, repository, tag or "", digest)


def _split_tag(name: str) -> tuple[str, str | None]:
    head, colon, tail = name.rpartition(":")
    if not colon or "/" in tail:
        return name, None
    return head, tail


def _split_host(name: str) -> tuple[str, str]:
    """Apply docker's rule: the first component is a host if it cannot be a Docker Hub user."""
    first, slash, rest = name.partition("/")
    if not slash or not _can_be_host(first):
        first, rest = DOCKER_HUB, name
    if first in {DOCKER_HUB, "index.docker.io"}:
        return DOCKER_HUB, rest if "/" in rest else f"library/{rest}"
    return first, rest


def _can_be_host(component: str) -> bool:
    special = any(character in component for character in ".:[")
    return special or component == "localhost" or component != component.lower()


def _check_host(text: str, host: str) -> None:
    if _HOST.fullmatch(host) is None:
        raise _invalid(text, f"{host!r} is not a host name with an optional port")


def _check_repository(text: str, repository: str) -> None:
    if len(repository) > MAX_REPOSITORY:
        raise _invalid(text, f"the repository is longer than {MAX_REPOSITORY} characters")
    if _REPOSITORY.fullmatch(repository) is not None:
        return
    if _REPOSITORY.fullmatch(repository.lower()) is not None:
        raise _invalid(text, f"repositories are lower case: {repository.lower()}")
    raise _invalid(text, "write [HOST/]REPOSITORY[:TAG][@DIGEST]")


def _digest(text: str, digest: str) -> Digest:
    try:
        return parse_digest(digest)
    except InvalidArgument as error:
        raise _invalid(
            text, "what follows the @ must be sha256: and 64 lower-case hex digits"
        ) from error


def _invalid(text: str, hint: str) -> InvalidArgument:
    return InvalidArgument("parse reference", text[:300] or '""', hint=hint)
