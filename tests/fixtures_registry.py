"""A real registry (Debian's docker-registry) on loopback, for tests marked `registry`.

A test module asks for it with `pytest_plugins = ["tests.fixtures_registry"]`.
"""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

START_SECONDS = 60.0
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class LocalRegistry:
    """A running registry; `host` is `127.0.0.1:PORT`, its plain-http address."""

    def __init__(self, host: str, log: Path) -> None:
        self.host = host
        self.log = log

    def push(
        self,
        manifest: bytes,
        blobs: Iterable[bytes],
        repository: str,
        tag: str,
        *,
        media_type: str = OCI_MANIFEST,
    ) -> str:
        """Upload the blobs, then the manifest (or index) under `tag`; return its digest.

        `tag` may be the manifest's own digest, for the members of an index.
        """
        for blob in blobs:
            self.push_blob(blob, repository)
        path = f"/v2/{repository}/manifests/{tag}"
        self._request("PUT", path, manifest, {"Content-Type": media_type}, expect=201)
        return _sha256(manifest)

    def push_blob(self, blob: bytes, repository: str) -> str:
        """Upload one blob; return its digest."""
        location = self._request("POST", f"/v2/{repository}/blobs/uploads/", b"", {}, expect=202)
        target = location[location.index("/v2/") :]
        joint = "&" if "?" in target else "?"
        digest = _sha256(blob)
        headers = {"Content-Type": "application/octet-stream"}
        self._request("PUT", f"{target}{joint}digest={digest}", blob, headers, expect=201)
        return digest

    def _request(
        self, method: str, path: str, body: bytes, headers: dict[str, str], *, expect: int
    ) -> str:
        """Return the answer's Location header."""
        connection = HTTPConnection(self.host, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        assert answer.status == expect, f"{method} {path}: {answer.status} {said!r}"
        return answer.getheader("Location", "")


@contextmanager
def running_registry(directory: Path, *, htpasswd: Path | None = None) -> Iterator[LocalRegistry]:
    """Run docker-registry with its storage, configuration and log in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "storage")},
            "delete": {"enabled": True},
        },
        "http": {"addr": host},
    }
    if htpasswd is not None:
        config["auth"] = {"htpasswd": {"realm": "lamina-test", "path": str(htpasswd)}}
    config_file = directory / "config.yml"
    config_file.write_text(json.dumps(config))  # JSON is YAML
    log = directory / "registry.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_it_listens(process, host, log)
        yield LocalRegistry(host, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[LocalRegistry]:
    """A registry of this test's own, empty."""
    with running_registry(tmp_path / "docker-registry") as running:
        yield running


def _wait_until_it_listens(process: subprocess.Popen[bytes], host: str, log: Path) -> None:
    name, _, port = host.partition(":")
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((name, int(port)), timeout=1).close()
            return
        except ConnectionRefusedError:
            assert process.poll() is None, f"docker-registry ended: {log.read_text()}"
            assert time.monotonic() < deadline, f"docker-registry is silent: {log.read_text()}"
            time.sleep(0.02)


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
