"""The size of a blob, from registries that tell it in one way or another, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lamina.core.digest import Digest
from lamina.errors import LaminaError, NotFound, Unavailable
from lamina.images.reference import parse
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import CredentialStore
from lamina.images.registry.hosts import HostsConfig
from lamina.images.registry.retry import RetryPolicy
from tests.faulty_registry import (
    Fault,
    FaultyRegistry,
    chunked,
    faulty_registry,
    html,
    ignore_range,
    send,
    status,
    tokens,
)

DATA = bytes(range(256)) * 40_000


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


def size(faulty: FaultyRegistry, *faults: Fault, data: bytes = DATA) -> int:
    digest = Digest(faulty.add_blob(data))
    faulty.fault("/blobs/", *faults)
    policy = RetryPolicy(attempts=3, read_timeout=0.3, wait=lambda seconds, _: None)
    registry = Registry(HostsConfig(plain_http=True), CredentialStore(), retry=policy)
    return registry.size(parse(f"{faulty.host}/team/app:v1"), digest)


def test_first_byte_tells(faulty: FaultyRegistry) -> None:
    assert size(faulty) == len(DATA)
    [seen] = faulty.seen
    assert (seen.method, seen.headers["Range"]) == ("GET", "bytes=0-0")


def test_registry_that_wants_a_login(faulty: FaultyRegistry) -> None:
    faulty.challenge = f'Bearer realm="http://{faulty.host}/token",service="s"'
    faulty.token = tokens(faulty)
    assert size(faulty) == len(DATA)


def test_registry_without_ranges_tells_by_length(faulty: FaultyRegistry) -> None:
    assert size(faulty, ignore_range()) == len(DATA)


def test_asked_again_while_it_is_busy(faulty: FaultyRegistry) -> None:
    assert size(faulty, status(503), status(429)) == len(DATA)


@pytest.mark.parametrize(
    "fault",
    [
        send(b"\0", 206, Content_Range="bytes 0-0/*"),
        send(b"\0", 206, Content_Range="bytes 1-1/10240000"),
        send(b"\0", 206),
        send(b"packed", Content_Encoding="gzip"),
        send(b""),
        chunked(DATA),
        html(),
    ],
)
def test_answers_that_tell_nothing(faulty: FaultyRegistry, fault: Fault) -> None:
    with pytest.raises(Unavailable, match=r"ask for the size of blob sha256:.* does not tell"):
        size(faulty, fault)


def test_empty_blob_has_no_first_byte(faulty: FaultyRegistry) -> None:
    with pytest.raises(Unavailable, match="does not tell"):
        size(faulty, data=b"")


def test_blob_that_is_not_there(faulty: FaultyRegistry) -> None:
    with pytest.raises(NotFound):
        size(faulty, status(404))


def test_registry_that_refuses(faulty: FaultyRegistry) -> None:
    with pytest.raises(LaminaError, match="answered 403"):
        size(faulty, status(403))
