"""Pushing to a real registry."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lamina.errors import InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unavailable
from lamina.images.operation import Options
from lamina.images.platform import parse_platform
from lamina.images.progress import Event, Stage
from lamina.images.push import PushOptions
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import Credential, CredentialStore
from lamina.images.registry.hosts import HostsConfig
from lamina.images.registry.retry import RetryPolicy
from lamina.store import Store
from tests.fixtures_command import Command
from tests.fixtures_registry import LocalRegistry, running_registry
from tests.images import OCI_INDEX, OCI_MANIFEST, ImageFiles, Layer, image, index
from tests.unit.test_registry_real import HTPASSWD

pytest_plugins = ["tests.fixtures_registry", "tests.fixtures_command"]
pytestmark = [pytest.mark.root, pytest.mark.registry]

FILES = image(Layer.of({"a": b"a" * 100_000}), Layer.of({"b": b"b"}))


class Events:
    def __init__(self) -> None:
        self.seen: list[Event] = []

    def update(self, event: Event) -> None:
        self.seen.append(event)


@pytest.fixture
def store(root_dir: Path) -> Iterator[Store]:
    with Store(root_dir) as opened:
        yield opened


def have(store: Store, registry: LocalRegistry, files: ImageFiles = FILES) -> str:
    """Bring an image into the store, by way of another repository."""
    registry.push(files.manifest, files.blobs, "source", "1")
    ref = f"{registry.host}/source:1"
    store.pull(ref, unpack=False, plain_http=True)
    return ref


def served(registry: LocalRegistry, repository: str, object: str) -> bytes:
    url = f"http://{registry.host}/v2/{repository}/manifests/{object}"
    request = urllib.request.Request(url, headers={"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"})
    with urllib.request.urlopen(request) as answer:
        data: bytes = answer.read()
        return data


def test_what_was_pushed_can_be_pulled(store: Store, root_dir: Path, tmp_path: Path) -> None:
    with running_registry(tmp_path / "one") as one, running_registry(tmp_path / "two") as two:
        ref = have(store, one)
        events = Events()
        target = f"{two.host}/team/app:v2"
        pushed = store.push(ref, target, plain_http=True, progress=events)
        assert pushed.sent == len(FILES.blobs)
        assert pushed.sent_bytes == pushed.size == sum(map(len, FILES.blobs))
        assert served(two, "team/app", "v2") == FILES.manifest
        ends = {event.digest: event.stage for event in events.seen}
        assert set(ends.values()) == {Stage.DONE}
        again = store.push(ref, target, plain_http=True)
        assert (again.sent, again.sent_bytes) == (0, 0)
        with Store(tmp_path / "other") as other:
            other.pull(target, unpack=False, plain_http=True)
            for layer in FILES.layers:
                assert other.images.content.path(layer.digest).read_bytes() == layer.blob  # type: ignore[arg-type]
    assert store.images.leases.all() == []


def test_another_repository_of_the_registry_gives_its_blobs(
    store: Store, registry: LocalRegistry
) -> None:
    ref = have(store, registry)
    pushed = store.push(ref, f"{registry.host}/target:1", plain_http=True)
    assert pushed.sent == 0
    assert served(registry, "target", "1") == FILES.manifest


def test_index_is_pushed_whole_or_for_one_platform(store: Store, registry: LocalRegistry) -> None:
    images = [
        image(Layer.of({"arch": name.encode()}), architecture=name) for name in ("amd64", "arm64")
    ]
    whole = index(*images)
    for each in images:
        registry.push(each.manifest, each.blobs, "multi", each.digest)
    registry.push(whole, [], "multi", "1", media_type=OCI_INDEX)
    ref = f"{registry.host}/multi:1"
    arm = PushOptions(platforms=(parse_platform("linux/arm64"),))
    only = Options(platforms=(parse_platform("linux/arm64"),))
    store.pull(ref, unpack=False, plain_http=True, options=only)
    store.push(ref, f"{registry.host}/arm:1", plain_http=True, options=arm)
    assert served(registry, "arm", "1") == images[1].manifest
    with pytest.raises(NotFound, match="linux/amd64"):
        store.push(ref, f"{registry.host}/whole:1", plain_http=True)
    store.pull(ref, unpack=False, plain_http=True, options=Options(all_platforms=True))
    store.push(ref, f"{registry.host}/whole:1", plain_http=True)
    assert served(registry, "whole", "1") == whole
    assert served(registry, "whole", images[0].digest) == images[0].manifest


def test_missing_layers_are_told_before_anything_is_sent(
    store: Store, registry: LocalRegistry
) -> None:
    ref = have(store, registry)
    store.images.content.delete(FILES.layers[1].digest)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="1 blobs are missing"):
        store.push(ref, f"{registry.host}/other:1", plain_http=True)
    with pytest.raises(urllib.error.HTTPError):
        served(registry, "other", "1")


def test_reference_with_a_digest(store: Store, registry: LocalRegistry) -> None:
    ref = have(store, registry)
    with pytest.raises(InvalidArgument, match="push another image"):
        store.push(ref, f"{registry.host}/other@sha256:{'0' * 64}", plain_http=True)
    digest = store.image(ref).target.digest
    store.push(ref, f"{registry.host}/other:v1@{digest}", plain_http=True)
    assert served(registry, "other", "v1") == FILES.manifest


def test_login(store: Store, registry: LocalRegistry, tmp_path: Path) -> None:
    ref = have(store, registry)
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    with running_registry(tmp_path / "closed", htpasswd=tmp_path / "htpasswd") as closed:
        target = f"{closed.host}/team/app:1"
        with pytest.raises(Unauthenticated, match="docker login"):
            store.push(ref, target, plain_http=True)
        user = CredentialStore(user=Credential("user", "pass:word"))
        client = Registry(HostsConfig(plain_http=True), user)
        assert store.push(ref, target, registry=client).sent == len(FILES.blobs)
        client.close()


class _Refusing(BaseHTTPRequestHandler):
    """A registry that has nothing and answers every other request with `status`."""

    status = 500
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(405)

    def do_POST(self) -> None:
        self._answer(self.status)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.mark.parametrize(
    ("status", "error"), [(500, Unavailable), (403, PermissionDenied), (404, NotFound)]
)
def test_refusals(
    store: Store, registry: LocalRegistry, status: int, error: type[Exception]
) -> None:
    ref = have(store, registry)
    handler = type("Handler", (_Refusing,), {"status": status})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = Registry(
        HostsConfig(plain_http=True), CredentialStore(), retry=RetryPolicy(2, first_delay=0.01)
    )
    target = f"127.0.0.1:{server.server_port}/x:1"
    with pytest.raises(error, match=rf"push blob sha256:.* to 127.0.0.1:\d+: answered {status}"):
        store.push(ref, target, registry=client)
    client.close()
    server.shutdown()
    server.server_close()


def test_command(command: Command, registry: LocalRegistry) -> None:
    registry.push(FILES.manifest, FILES.blobs, "source", "1")
    ref, target = f"{registry.host}/source:1", f"{registry.host}/target:1"
    command.run("images", "pull", "--plain-http", "--no-unpack", ref)
    said = command.json("images", "push", "--plain-http", "--json", target, ref)
    assert said["Digest"] == FILES.digest
    assert said["Sent"] == 0
    out = command.out("images", "push", "--plain-http", ref)
    assert out.startswith(f"{ref}@{FILES.digest}: done in ")
    out = command.out("images", "push", "--plain-http", f"{ref}@{FILES.digest}", ref)
    assert out.startswith(f"{ref}@{FILES.digest}: done in ")
    missing = command.run("images", "push", "--plain-http", "nowhere:1", code=None)
    assert missing.returncode
    assert b"nowhere:1" in missing.stderr
