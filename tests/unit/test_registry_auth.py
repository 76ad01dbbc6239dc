"""Logging in over real sockets: tokens, Basic, renewal, and where credentials must not go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from lamina.core.digest import parse_digest
from lamina.errors import Unauthenticated, Unavailable
from lamina.images.manifest import Descriptor
from lamina.images.reference import Reference, parse
from lamina.images.registry.auth import Challenge, choose
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import Credential, CredentialStore
from lamina.images.registry.hosts import HostsConfig
from lamina.images.registry.retry import RetryPolicy
from tests.faulty_registry import (
    FaultyRegistry,
    Seen,
    basic,
    cut,
    faulty_registry,
    send,
    status,
    tokens,
)

DATA = b"layer" * 1000
SECRET = "s3cr3t-pässword"
USER = Credential("user", SECRET)


@dataclass
class MemorySink:
    data: bytearray = field(default_factory=bytearray)

    @property
    def offset(self) -> int:
        return len(self.data)

    def write(self, data: bytes | memoryview) -> None:
        self.data += data


def client(user: Credential | None = None, directory: Path | None = None) -> Registry:
    return Registry(
        HostsConfig(directory=directory, plain_http=True),
        CredentialStore(user=user),
        retry=RetryPolicy(attempts=3, read_timeout=1.0, wait=lambda seconds, cancel: None),
    )


def fetch(faulty: FaultyRegistry, registry: Registry, repository: str = "team/app") -> bytes:
    sink = MemorySink()
    digest = parse_digest(faulty.add_blob(DATA))
    ref = reference(faulty, repository)
    registry.download(ref, Descriptor("application/octet-stream", digest, len(DATA)), sink)
    return bytes(sink.data)


def reference(faulty: FaultyRegistry, repository: str = "team/app") -> Reference:
    return parse(f"{faulty.host}/{repository}:v1")


def token_requests(faulty: FaultyRegistry) -> list[Seen]:
    return [seen for seen in faulty.seen if seen.path.startswith("/token")]


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        running.token = tokens(running)
        running.challenge = f'Bearer realm="http://{running.host}/token",service="the \\"reg\\""'
        yield running


def test_an_anonymous_token(faulty: FaultyRegistry) -> None:
    registry = client()
    assert fetch(faulty, registry) == DATA
    assert fetch(faulty, registry) == DATA
    (asked,) = token_requests(faulty)
    assert asked.query == {
        "scope": ["repository:team/app:pull"],
        "service": ['the "reg"'],
        "client_id": ["lamina"],
    }
    assert "Authorization" not in asked.headers


def test_the_scope_that_is_asked_for_is_given(faulty: FaultyRegistry) -> None:
    faulty.challenge += ',scope="repository:x:pull,push"'
    fetch(faulty, client())
    assert token_requests(faulty)[0].query["scope"] == ["repository:x:pull,push"]


def test_each_repository_has_its_token(faulty: FaultyRegistry) -> None:
    registry = client()
    fetch(faulty, registry, "team/one")
    fetch(faulty, registry, "team/two")
    scopes = [seen.query["scope"][0] for seen in token_requests(faulty)]
    assert scopes == ["repository:team/one:pull", "repository:team/two:pull"]


def test_a_token_for_a_user(faulty: FaultyRegistry) -> None:
    faulty.token = tokens(faulty, secret=f"user:{SECRET}")
    assert fetch(faulty, client(USER)) == DATA
    (asked,) = token_requests(faulty)
    assert asked.headers["Authorization"] == basic(f"user:{SECRET}")
    assert asked.query["account"] == ["user"]
    blobs = [seen for seen in faulty.seen if "/blobs/" in seen.path]
    assert [seen.headers.get("Authorization") for seen in blobs] == [None, "Bearer token-0"]


def test_an_identity_token_is_posted(faulty: FaultyRegistry) -> None:
    fetch(faulty, client(Credential("", identity_token="refresh-me")))
    (asked,) = token_requests(faulty)
    assert asked.method == "POST"
    form = parse_qs(asked.body.decode())
    assert form["grant_type"] == ["refresh_token"]
    assert form["refresh_token"] == ["refresh-me"]
    assert form["scope"] == ["repository:team/app:pull"]
    assert asked.query == {}


def test_a_wrong_password_is_told_without_the_password(faulty: FaultyRegistry) -> None:
    faulty.token = tokens(faulty, secret="user:other")
    with pytest.raises(Unauthenticated, match=r"answered 401 \(UNAUTHORIZED: bad\).*--user") as e:
        fetch(faulty, client(USER))
    assert SECRET not in str(e.value)


def test_a_token_that_is_refused_is_not_asked_for_again(faulty: FaultyRegistry) -> None:
    faulty.token = send(b'{"access_token": "useless"}')
    with pytest.raises(Unauthenticated, match=r"answered 401.*docker login"):
        fetch(faulty, client())
    assert len(faulty.seen) == 3


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"token": ""}', b'{"token": "a\\nb"}', b"\xff"])
def test_an_answer_without_a_token(faulty: FaultyRegistry, answer: bytes) -> None:
    faulty.token = send(answer)
    with pytest.raises(Unauthenticated, match="gave no token"):
        fetch(faulty, client())


def test_a_token_server_in_trouble_is_asked_again(faulty: FaultyRegistry) -> None:
    faulty.fault("/token", status(503), status(429, Retry_After="1"))
    assert fetch(faulty, client()) == DATA


def test_a_short_lived_token_is_renewed_before_it_is_used(faulty: FaultyRegistry) -> None:
    faulty.token = tokens(faulty, expires_in=0)
    registry = client()
    fetch(faulty, registry)
    fetch(faulty, registry)
    refused = [s for s in faulty.seen if "/blobs/" in s.path and "Authorization" not in s.headers]
    assert len(token_requests(faulty)) == 2
    assert len(refused) == 1


def test_a_token_that_expires_during_a_download_is_renewed(faulty: FaultyRegistry) -> None:
    registry = client()
    fetch(faulty, registry)
    faulty.accepted.clear()
    faulty.accepted.add("Bearer some-other")
    faulty.fault("/blobs/", cut(1000))
    assert fetch(faulty, registry) == DATA
    assert len(token_requests(faulty)) == 2


def test_many_threads_log_in_once(faulty: FaultyRegistry) -> None:
    registry = client()
    threads = [threading.Thread(target=fetch, args=(faulty, registry)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(token_requests(faulty)) == 1


def test_basic(faulty: FaultyRegistry) -> None:
    faulty.challenge = 'Basic realm="the registry"'
    faulty.accepted = {basic(f"user:{SECRET}")}
    registry = client(USER)
    assert fetch(faulty, registry) == DATA
    assert fetch(faulty, registry) == DATA
    assert ["Authorization" in seen.headers for seen in faulty.seen] == [False, True, True]


def test_basic_without_a_credential_says_how_to_give_one(faulty: FaultyRegistry) -> None:
    faulty.challenge = "Basic"
    with pytest.raises(Unauthenticated) as caught:
        fetch(faulty, client())
    assert f"use --user NAME, or run: docker login {faulty.host}" in str(caught.value)


def test_an_unknown_scheme(faulty: FaultyRegistry) -> None:
    faulty.challenge = "Negotiate"
    with pytest.raises(Unauthenticated, match="not Basic or Bearer"):
        fetch(faulty, client(USER))


def test_a_redirect_takes_no_authorization_to_another_host(faulty: FaultyRegistry) -> None:
    registry = client(USER)
    with faulty_registry() as storage:
        digest = storage.add_blob(DATA)
        target = f"http://{storage.host}/bucket/blobs/{digest}?signature=1"
        faulty.accepted = {basic(f"user:{SECRET}")}
        faulty.challenge = "Basic"
        fetch(faulty, registry)
        faulty.fault("/blobs/", status(307, Location=target))
        assert fetch(faulty, registry) == DATA
        (seen,) = storage.seen
        assert "Authorization" in faulty.seen[-1].headers
        assert "Authorization" not in seen.headers
        assert seen.query == {"signature": ["1"]}


def test_a_redirect_back_home_stays_without_authorization(faulty: FaultyRegistry) -> None:
    """Else another host could aim a login at any path of the registry."""
    registry = client(USER)
    faulty.challenge = "Basic"
    faulty.accepted = {basic(f"user:{SECRET}")}
    fetch(faulty, registry)
    with faulty_registry() as other:
        home = f"http://{faulty.host}/v2/private/blobs/{faulty.add_blob(DATA)}"
        other.fault("/", status(302, Location=home))
        faulty.fault("/blobs/", status(302, Location=f"http://{other.host}/x"))
        with pytest.raises(Unauthenticated):
            fetch(faulty, registry)
    assert "Authorization" not in faulty.seen[-1].headers


def test_a_redirect_on_the_same_host_keeps_the_authorization(faulty: FaultyRegistry) -> None:
    registry = client()
    fetch(faulty, registry)
    path = f"/v2/elsewhere/blobs/{faulty.add_blob(DATA)}"
    faulty.fault("/blobs/", status(307, Location=path))
    assert fetch(faulty, registry) == DATA
    assert faulty.seen[-1].path == path


def test_a_401_of_another_host_is_not_answered(faulty: FaultyRegistry) -> None:
    with faulty_registry() as other:
        other.challenge = f'Bearer realm="http://{other.host}/token"'
        other.token = tokens(other)
        registry = client(USER)
        fetch(faulty, registry)
        faulty.fault("/blobs/", status(307, Location=f"http://{other.host}/blobs/x"))
        with pytest.raises(Unauthenticated):
            fetch(faulty, registry)
        assert token_requests(other) == []


def test_redirects_in_a_circle_end(faulty: FaultyRegistry) -> None:
    registry = client()
    fetch(faulty, registry)
    faulty.fault("/v2/", *[status(302, Location="/v2/again")] * 20)
    with pytest.raises(Unavailable, match="redirects more than 8 times"):
        fetch(faulty, registry)


def test_a_redirect_to_another_protocol_is_refused(faulty: FaultyRegistry) -> None:
    faulty.fault("/blobs/", status(302, Location="file:///etc/passwd"))
    with pytest.raises(Unavailable, match="redirects to 'file:///etc/passwd'"):
        fetch(faulty, client())


def test_the_users_credential_is_not_for_mirrors(faulty: FaultyRegistry, tmp_path: Path) -> None:
    host = tmp_path / "registry.example"
    host.mkdir()
    faulty.token = tokens(faulty)
    with faulty_registry() as upstream:
        text = f'server = "http://{upstream.host}"\n[host."http://{faulty.host}"]\n'
        (host / "hosts.toml").write_text(text)
        digest = parse_digest(faulty.add_blob(DATA))
        sink = MemorySink()
        client(USER, tmp_path).download(
            parse("registry.example/team/app:v1"),
            Descriptor("application/octet-stream", digest, len(DATA)),
            sink,
        )
    assert sink.data == DATA
    assert all("Basic" not in seen.headers.get("Authorization", "") for seen in faulty.seen)


def test_no_log_has_a_secret(faulty: FaultyRegistry, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    faulty.token = tokens(faulty, secret=f"user:{SECRET}")
    faulty.fault("/blobs/", status(500))
    registry = client(USER)
    fetch(faulty, registry)
    assert "GET http" in caplog.text
    for secret in (SECRET, basic(f"user:{SECRET}"), "token-0"):
        assert secret not in caplog.text
        assert secret not in repr([USER, vars(registry), registry._requests._authorizer._grants])


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        (['Basic realm="r"'], Challenge("basic", "r", "", "")),
        (['Bearer realm="https://t",scope=a'], Challenge("bearer", "https://t", "", "a")),
        (['Basic realm="r", Bearer realm="t"'], Challenge("bearer", "t", "", "")),
        (["Basic", 'BEARER realm="t", service="a,b"'], Challenge("bearer", "t", "a,b", "")),
        (['Bearer scope="x"', "Basic"], Challenge("basic", "", "", "")),
        (['Basic realm="no, Bearer realm=x"'], Challenge("basic", "no, Bearer realm=x", "", "")),
        (["Bearer"], None),
        (["Digest realm=x"], None),
        ([], None),
    ],
)
def test_challenges(values: list[str], chosen: Challenge | None) -> None:
    assert choose(values) == chosen
