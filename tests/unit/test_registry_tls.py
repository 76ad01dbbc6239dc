"""Certificates, plain http on loopback, and HTTP proxies, over real sockets."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import ConfigError, Unavailable
from lamina.images.reference import parse
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import Credential, CredentialStore
from lamina.images.registry.hosts import TLS, HostsConfig
from lamina.images.registry.proxies import Proxies
from lamina.images.registry.retry import RetryPolicy
from tests.faulty_registry import FaultyRegistry, basic, faulty_registry

MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}'
POLICY = RetryPolicy(attempts=2, read_timeout=2.0, wait=lambda seconds, cancel: None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", "/CN=lamina-test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command.split(), *names, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture
def secure(pair: tuple[Path, Path]) -> Iterator[FaultyRegistry]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    with faulty_registry(tls=context) as running:
        running.add_manifest("v1", MANIFEST)
        yield running


def hosts_file(directory: Path, faulty: FaultyRegistry, settings: str = "") -> HostsConfig:
    """Loopback hosts are verified where a hosts.toml names them with https."""
    host = directory / "registry.example"
    host.mkdir()
    (host / "hosts.toml").write_text(f'server = "https://{faulty.host}"\n{settings}\n')
    return HostsConfig(directory=directory)


def resolve(
    hosts: HostsConfig, name: str = "registry.example", proxies: Proxies | None = None
) -> bytes:
    registry = Registry(
        hosts,
        CredentialStore(user=Credential("user", "secret")),
        retry=POLICY,
        proxies=proxies,
    )
    try:
        return registry.resolve(parse(f"{name}/app:v1"))[1]
    finally:
        registry.close()


def test_an_unknown_authority_is_refused_with_the_fix(
    tmp_path: Path, secure: FaultyRegistry
) -> None:
    with pytest.raises(Unavailable, match=r"certificate is not trusted.*--tlscacert FILE"):
        resolve(hosts_file(tmp_path, secure))
    assert secure.seen == []


def test_an_authority_of_the_hosts_file(
    tmp_path: Path, secure: FaultyRegistry, pair: tuple[Path, Path]
) -> None:
    assert resolve(hosts_file(tmp_path, secure, f'ca = "{pair[0]}"')) == MANIFEST


def test_an_authority_of_the_command_line(
    tmp_path: Path, secure: FaultyRegistry, pair: tuple[Path, Path]
) -> None:
    directory = hosts_file(tmp_path, secure).directory
    assert resolve(HostsConfig(directory=directory, tls=TLS(ca=(pair[0],)))) == MANIFEST


def test_any_certificate_will_do_on_request(tmp_path: Path, secure: FaultyRegistry) -> None:
    assert resolve(hosts_file(tmp_path, secure, "skip_verify = true")) == MANIFEST


def test_a_client_certificate(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pair[0])
    context.load_cert_chain(*pair)
    context.verify_mode = ssl.CERT_REQUIRED
    with faulty_registry(tls=context) as faulty:
        faulty.add_manifest("v1", MANIFEST)
        config = hosts_file(tmp_path, faulty, f'ca = "{pair[0]}"')
        with pytest.raises(Unavailable, match=f"connect to {faulty.host}|connection broke"):
            resolve(config)
        known = HostsConfig(directory=config.directory, tls=TLS(client=pair))
        assert resolve(known) == MANIFEST


@pytest.mark.parametrize("setting", ['ca = "junk"', 'client = "junk"'])
def test_a_file_that_is_no_certificate_is_named(
    tmp_path: Path, secure: FaultyRegistry, setting: str
) -> None:
    config = hosts_file(tmp_path, secure, setting)
    (tmp_path / "registry.example" / "junk").write_text("junk")
    with pytest.raises(ConfigError, match=r"registry\.example/junk: no usable certificate"):
        resolve(config)


def test_a_loopback_registry_may_speak_tls(secure: FaultyRegistry) -> None:
    assert resolve(HostsConfig(), secure.host) == MANIFEST


def test_a_loopback_registry_may_speak_plain_http() -> None:
    with faulty_registry() as faulty:
        faulty.add_manifest("v1", MANIFEST)
        registry = Registry(HostsConfig(), CredentialStore(), retry=POLICY)
        for _ in range(3):
            assert registry.resolve(parse(f"{faulty.host}/app:v1"))[1] == MANIFEST
        registry.close()
        assert len(faulty.seen) == 3
        assert faulty.connections == 2


def test_a_proxy_is_used_and_logged_in_to() -> None:
    with faulty_registry() as proxy:
        proxy.add_manifest("v1", MANIFEST)
        proxies = Proxies(http=f"http://me:p%40ss@{proxy.host}")
        assert resolve(HostsConfig(plain_http=True), "registry.invalid", proxies) == MANIFEST
        (seen,) = proxy.seen
    assert seen.path == "http://registry.invalid/v2/app/manifests/v1"
    assert seen.headers["proxy-authorization"] == basic("me:p@ss")


def test_a_proxy_of_the_hosts_file_comes_before_the_environments(tmp_path: Path) -> None:
    with faulty_registry() as proxy:
        proxy.add_manifest("v1", MANIFEST)
        host = tmp_path / "registry.example"
        host.mkdir()
        text = f'server = "http://registry.invalid"\nproxy = "http://{proxy.host}"\n'
        (host / "hosts.toml").write_text(text)
        proxies = Proxies(http="http://127.0.0.1:1", no_proxy="*")
        assert resolve(HostsConfig(directory=tmp_path), proxies=proxies) == MANIFEST


def test_a_proxy_that_is_down_is_named() -> None:
    proxies = Proxies(https="http://127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"connect to registry\.invalid: .*proxy"):
        resolve(HostsConfig(), "registry.invalid", proxies)
