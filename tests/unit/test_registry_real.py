"""Against Debian's docker-registry: what the faulty registry's idea of a registry is checked by."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.digest import parse_digest
from lamina.errors import NotFound, Unauthenticated
from lamina.images.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor
from lamina.images.reference import parse
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import Credential, CredentialStore
from lamina.images.registry.hosts import HostsConfig
from tests.fixtures_registry import LocalRegistry, running_registry

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = pytest.mark.registry

BLOB = os.urandom(3 << 20)
HTPASSWD = "user:$2b$04$abcdefghijklmnopqrstuu7govE5p0NSk1WUEk5C2Qm3hpPC6VJ66\n"
"""The bcrypt of `pass:word`; docker-registry takes nothing weaker."""


class MemorySink:
    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)

    @property
    def offset(self) -> int:
        return len(self.data)

    def write(self, data: bytes | memoryview) -> None:
        self.data += data


@pytest.fixture
def client() -> Iterator[Registry]:
    opened = Registry(HostsConfig(), CredentialStore())
    yield opened
    opened.close()


def image(config_digest: str) -> bytes:
    config = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": config_digest,
        "size": len(BLOB),
    }
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    return json.dumps(document).encode()


def test_a_tag_a_digest_and_a_blob(registry: LocalRegistry, client: Registry) -> None:
    blob = registry.push_blob(BLOB, "team/app")
    digest = registry.push(image(blob), [], "team/app", "v1")
    ref = parse(f"{registry.host}/team/app:v1")
    found, data = client.resolve(ref)
    assert found == Descriptor(OCI_MANIFEST, parse_digest(digest), len(data))
    assert data == image(blob)
    assert client.manifest(ref, found) == data
    assert client.resolve(parse(f"{registry.host}/team/app@{digest}"))[1] == data
    sink = MemorySink(BLOB[:1000])
    client.download(ref, Descriptor("x/y", parse_digest(blob), len(BLOB)), sink)
    assert sink.data == BLOB


def test_an_index(registry: LocalRegistry, client: Registry) -> None:
    blob = registry.push_blob(BLOB, "team/app")
    manifest = image(blob)
    child = registry.push(manifest, [], "team/app", "child")
    member = {
        "mediaType": OCI_MANIFEST,
        "digest": child,
        "size": len(manifest),
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [member]}
    index = json.dumps(document).encode()
    registry.push(index, [], "team/app", "v1", media_type=OCI_INDEX)
    ref = parse(f"{registry.host}/team/app:v1")
    found, data = client.resolve(ref)
    assert (found.media_type, data) == (OCI_INDEX, index)
    descriptor = Descriptor(OCI_MANIFEST, parse_digest(child), len(manifest))
    assert client.manifest(ref, descriptor) == manifest


def test_what_is_missing(registry: LocalRegistry, client: Registry) -> None:
    ref = parse(f"{registry.host}/team/app:v1")
    with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
        client.resolve(ref)
    absent = Descriptor("x/y", parse_digest("sha256:" + "0" * 64), 5)
    with pytest.raises(NotFound, match=r"BLOB_UNKNOWN|NAME_UNKNOWN"):
        client.download(ref, absent, MemorySink())


def test_parts_of_a_blob(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    with running_registry(tmp_path / "registry") as registry:
        digest = registry.push_blob(BLOB, "team/app")
    # The same storage, behind a login.
    with running_registry(tmp_path / "registry", htpasswd=tmp_path / "htpasswd") as registry:
        ref = parse(f"{registry.host}/team/app:v1")
        descriptor = Descriptor("x/y", parse_digest(digest), len(BLOB))
        user = Credential("user", "pass:word")
        client = Registry(HostsConfig(), CredentialStore(user=user))
        source = client.source(ref, descriptor)
        for offset, length in [(0, 1), (len(BLOB) - 1, 1), (12345, 1 << 20), (0, len(BLOB))]:
            assert source.read_at(offset, length) == BLOB[offset : offset + length]
        client.close()
        anonymous = Registry(HostsConfig(), CredentialStore())
        with pytest.raises(Unauthenticated):
            anonymous.source(ref, descriptor).read_at(0, 1)
        anonymous.close()


def test_basic_login(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    with running_registry(tmp_path / "registry", htpasswd=tmp_path / "htpasswd") as registry:
        ref = parse(f"{registry.host}/team/app:v1")
        for user, error in [
            (None, Unauthenticated),
            (Credential("user", "wrong"), Unauthenticated),
            (Credential("user", "pass:word"), NotFound),
        ]:
            client = Registry(HostsConfig(), CredentialStore(user=user))
            with pytest.raises(error):
                client.resolve(ref)
            client.close()
