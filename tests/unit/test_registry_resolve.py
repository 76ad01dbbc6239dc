"""Resolving: what is taken for a manifest, how digests are checked, how mirrors stand in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lamina.core.digest import parse_digest
from lamina.errors import (
    ConfigError,
    DigestMismatch,
    FailedPrecondition,
    FormatError,
    LaminaError,
    NotFound,
    NotImplementedHere,
    Unauthenticated,
    Unavailable,
)
from lamina.images.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MAX_MANIFEST_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
)
from lamina.images.reference import Reference, parse
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import CredentialStore
from lamina.images.registry.hosts import HostsConfig
from lamina.images.registry.retry import RetryPolicy
from tests.faulty_registry import (
    Fault,
    FaultyRegistry,
    faulty_registry,
    hang_up,
    html,
    raw,
    send,
    sha256,
    status,
)

ABSENT = "sha256:" + "0" * 64
POLICY = RetryPolicy(attempts=3, read_timeout=0.5, wait=lambda seconds, cancel: None)


def manifest(media_type: str = OCI_MANIFEST, **fields: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, **fields}).encode()


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


@pytest.fixture
def registry() -> Iterator[Registry]:
    opened = Registry(HostsConfig(plain_http=True), CredentialStore(), retry=POLICY)
    yield opened
    opened.close()


def reference(faulty: FaultyRegistry, suffix: str = ":v1") -> Reference:
    return parse(f"{faulty.host}/team/app{suffix}")


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX])
def test_every_kind_of_manifest(
    faulty: FaultyRegistry, registry: Registry, media_type: str
) -> None:
    data = manifest(media_type)
    digest = faulty.add_manifest("v1", data, f"{media_type}; charset=utf-8")
    found, got = registry.resolve(reference(faulty))
    assert found == Descriptor(media_type, parse_digest(digest), len(data))
    assert got == data
    accept = faulty.seen[0].headers["Accept"]
    assert media_type in accept


def test_the_type_inside_counts_where_the_header_says_little(
    faulty: FaultyRegistry, registry: Registry
) -> None:
    faulty.add_manifest("v1", manifest(OCI_INDEX), "text/plain")
    assert registry.resolve(reference(faulty))[0].media_type == OCI_INDEX


def test_a_digest_is_asked_for_rather_than_its_tag(
    faulty: FaultyRegistry, registry: Registry
) -> None:
    digest = faulty.add_manifest("v1", manifest())
    registry.resolve(reference(faulty, f":v9@{digest}"))
    assert faulty.paths() == [f"GET /v2/team/app/manifests/{digest}"]


def test_other_bytes_than_the_digests_are_refused(
    faulty: FaultyRegistry, registry: Registry
) -> None:
    digest = faulty.add_manifest("v1", manifest())
    faulty.fault("/manifests/", send(manifest(annotations={}), Content_Type=OCI_MANIFEST))
    with pytest.raises(DigestMismatch) as caught:
        registry.resolve(reference(faulty, f"@{digest}"))
    assert caught.value.expected == digest
    assert caught.value.got == sha256(manifest(annotations={}))


def test_sha512_digests(faulty: FaultyRegistry, registry: Registry) -> None:
    data = manifest()
    digest = "sha512:" + hashlib.sha512(data).hexdigest()
    faulty.manifests[digest] = (data, OCI_MANIFEST)
    assert registry.resolve(reference(faulty, f"@{digest}"))[0].digest == digest


def test_what_the_registry_says_of_a_tags_digest_is_only_compared(
    faulty: FaultyRegistry, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    answer = send(manifest(), Content_Type=OCI_MANIFEST, Docker_Content_Digest=ABSENT)
    faulty.fault("/manifests/", answer)
    assert registry.resolve(reference(faulty))[0].digest == sha256(manifest())
    assert ABSENT in caplog.text


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (html(), Unavailable, r"the answer is text/html, not a manifest.*; see whether a proxy"),
        (send(b"{}", Content_Type="application/pdf"), Unavailable, "the answer is application/pdf"),
        (send(b"<p>", Content_Type=OCI_MANIFEST), FormatError, "expected a JSON manifest"),
        (send(b"[" * 9999, Content_Type=OCI_MANIFEST), FormatError, "expected a JSON manifest"),
        (send(b"{}", Content_Type="text/plain"), FormatError, "a manifest's media type"),
        (send(b""), FormatError, "expected a JSON manifest"),
        (
            send(b" " * (MAX_MANIFEST_BYTES + 1), Content_Type=OCI_MANIFEST),
            FormatError,
            f"at most {MAX_MANIFEST_BYTES} bytes",
        ),
        (
            send(b"{}", Content_Type="application/vnd.docker.distribution.manifest.v1+prettyjws"),
            NotImplementedHere,
            "schema 1.*; push the image again",
        ),
        (
            send(b'{"schemaVersion": 1}', Content_Type="application/json"),
            NotImplementedHere,
            "schema 1.*; push the image again",
        ),
    ],
)
def test_what_is_no_manifest_is_refused(
    faulty: FaultyRegistry,
    registry: Registry,
    fault: Fault,
    error: type[LaminaError],
    said: str,
) -> None:
    faulty.fault("/manifests/", fault)
    with pytest.raises(error, match=said):
        registry.resolve(reference(faulty))
    assert len(faulty.seen) == 1


def test_an_unknown_tag_is_named(faulty: FaultyRegistry, registry: Registry) -> None:
    with pytest.raises(NotFound, match=r"check that 127.*/team/app has v1$") as caught:
        registry.resolve(reference(faulty))
    assert f"fetch manifest of {faulty.host}/team/app:v1" in str(caught.value)


def test_passing_troubles_are_waited_out(faulty: FaultyRegistry, registry: Registry) -> None:
    faulty.add_manifest("v1", manifest())
    faulty.fault("/manifests/", status(503), hang_up())
    assert registry.resolve(reference(faulty))[1] == manifest()


def test_a_manifest_has_the_size_of_its_descriptor(
    faulty: FaultyRegistry, registry: Registry
) -> None:
    data = manifest()
    digest = parse_digest(faulty.add_manifest("v1", data))
    right = Descriptor(OCI_MANIFEST, digest, len(data))
    assert registry.manifest(reference(faulty), right) == data
    with pytest.raises(FormatError, match=f"expected {len(data) + 1} bytes"):
        registry.manifest(reference(faulty), Descriptor(OCI_MANIFEST, digest, len(data) + 1))


class Mirrored:
    """A registry and one mirror of it, put together by a hosts.toml."""

    def __init__(self, upstream: FaultyRegistry, mirror: FaultyRegistry, directory: Path) -> None:
        self.upstream = upstream
        self.mirror = mirror
        self.directory = directory
        self.configure()

    def configure(self, settings: str = "") -> None:
        host = self.directory / "registry.example"
        host.mkdir(exist_ok=True)
        (host / "hosts.toml").write_text(
            f'server = "http://{self.upstream.host}"\n'
            f'[host."http://{self.mirror.host}"]\n{settings}\n'
        )

    def resolve(self, suffix: str = ":v1") -> bytes:
        hosts = HostsConfig(directory=self.directory)
        registry = Registry(hosts, CredentialStore(), retry=POLICY)
        try:
            return registry.resolve(parse(f"registry.example/team/app{suffix}"))[1]
        finally:
            registry.close()


@pytest.fixture
def mirrored(tmp_path: Path) -> Iterator[Mirrored]:
    with ExitStack() as stack:
        upstream = stack.enter_context(faulty_registry())
        mirror = stack.enter_context(faulty_registry())
        yield Mirrored(upstream, mirror, tmp_path)


def test_a_mirror_is_asked_first_and_told_for_whom(mirrored: Mirrored) -> None:
    mirrored.mirror.add_manifest("v1", manifest())
    assert mirrored.resolve() == manifest()
    assert mirrored.mirror.seen[0].query == {"ns": ["registry.example"]}
    assert mirrored.upstream.seen == []


@pytest.mark.parametrize("fault", [status(404), status(500), html(), hang_up(), status(401)])
def test_where_a_mirror_fails_the_registry_is_asked(mirrored: Mirrored, fault: Fault) -> None:
    mirrored.upstream.add_manifest("v1", manifest())
    mirrored.mirror.fault("/manifests/", *[fault] * 2)
    assert mirrored.resolve() == manifest()
    assert len(mirrored.mirror.seen) <= POLICY.mirror_attempts


def test_a_mirror_that_lies_about_a_digest_is_passed_over(mirrored: Mirrored) -> None:
    digest = mirrored.upstream.add_manifest("v1", manifest())
    mirrored.mirror.fault("/manifests/", send(b"{}", Content_Type=OCI_MANIFEST))
    assert mirrored.resolve(f"@{digest}") == manifest()


def test_when_all_fail_each_is_named(mirrored: Mirrored) -> None:
    mirrored.mirror.fault("/manifests/", *[status(500)] * 2)
    with pytest.raises(NotFound) as caught:
        mirrored.resolve()
    text = str(caught.value)
    assert f"from {mirrored.upstream.host}: answered 404" in text
    assert "; before that: fetch manifest of registry.example/team/app:v1" in text
    assert f"from {mirrored.mirror.host}: answered 500" in text


def test_only_a_host_that_may_resolve_looks_up_tags(mirrored: Mirrored) -> None:
    mirrored.configure('capabilities = ["pull"]')
    mirrored.mirror.add_manifest("v1", manifest(annotations={"evil": "yes"}))
    digest = mirrored.upstream.add_manifest("v1", manifest())
    assert mirrored.resolve() == manifest()
    assert mirrored.mirror.seen == []
    mirrored.mirror.manifests[digest] = mirrored.upstream.manifests[digest]
    assert mirrored.resolve(f"@{digest}") == manifest()
    assert len(mirrored.mirror.seen) == 1


def test_a_host_that_may_only_resolve_sends_no_content(mirrored: Mirrored) -> None:
    mirrored.configure('capabilities = ["resolve"]')
    digest = mirrored.mirror.add_manifest("v1", manifest())
    mirrored.upstream.add_manifest("v1", manifest(annotations={}))
    mirrored.upstream.manifests[digest] = mirrored.mirror.manifests[digest]
    assert mirrored.resolve() == manifest()
    assert mirrored.mirror.paths() == ["HEAD /v2/team/app/manifests/v1"]
    assert mirrored.upstream.paths() == [f"GET /v2/team/app/manifests/{digest}"]


def test_without_a_host_that_may_pull_nothing_is_asked(mirrored: Mirrored) -> None:
    host = mirrored.directory / "registry.example" / "hosts.toml"
    host.write_text(f'server = "http://{mirrored.upstream.host}"\ncapabilities = ["push"]\n')
    with pytest.raises(FailedPrecondition, match="no host may do it"):
        mirrored.resolve()
    assert mirrored.upstream.seen == []


def test_a_wrong_hosts_file_is_an_error_and_not_ignored(mirrored: Mirrored) -> None:
    mirrored.configure('capability = ["pull"]')
    with pytest.raises(ConfigError, match="capability: unknown key"):
        mirrored.resolve()


def test_headers_of_a_host_go_to_that_host_only(mirrored: Mirrored) -> None:
    mirrored.configure('header = {"X-Key" = ["a"]}')
    mirrored.upstream.add_manifest("v1", manifest())
    mirrored.resolve()
    assert mirrored.mirror.seen[0].headers["X-Key"] == "a"
    assert "X-Key" not in mirrored.upstream.seen[0].headers


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\x00\xff" * 40 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
        b"HTTP/1.1 999 \xc3\x28\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[bad\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://a:99999/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 70 + b".example/\r\n"
        b"Content-Length: 0\r\n\r\n",
        b'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm="http://[x"\r\n'
        b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 No\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
        b'{"errors": [1]}',
    ],
)
def test_junk_on_the_wire_is_an_error_of_the_tree(
    faulty: FaultyRegistry, registry: Registry, junk: bytes
) -> None:
    faulty.fault("/manifests/", *[raw(junk)] * POLICY.attempts)
    with pytest.raises((Unavailable, Unauthenticated, NotFound, FormatError)) as caught:
        registry.resolve(reference(faulty))
    assert faulty.host in str(caught.value) or "connect to aaaa" in str(caught.value)
    assert "object at 0x" not in str(caught.value)
