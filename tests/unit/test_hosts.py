"""Which hosts serve a name: defaults, the directories of certs.d, hosts.toml, certificate files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.errors import ConfigError
from lamina.images.registry.hosts import ALL_CAPABILITIES, TLS, Endpoint, HostsConfig
from lamina.images.registry.proxies import Proxies


def write(directory: Path, name: str, text: str) -> HostsConfig:
    (directory / name).mkdir()
    (directory / name / "hosts.toml").write_text(text)
    return HostsConfig(directory=directory)


def only(config: HostsConfig, namespace: str) -> Endpoint:
    (endpoint,) = config.endpoints(namespace)
    return endpoint


@pytest.mark.parametrize(
    ("namespace", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("ghcr.io", "https://ghcr.io/v2"),
        ("registry.example:5000", "https://registry.example:5000/v2"),
        ("localhost:80", "http://localhost:80/v2"),
    ],
)
def test_defaults(namespace: str, url: str) -> None:
    endpoint = only(HostsConfig(), namespace)
    assert endpoint.url == url
    assert endpoint.query == ""
    assert endpoint.capabilities == ALL_CAPABILITIES
    assert not endpoint.plain_fallback
    assert not endpoint.tls.skip_verify


@pytest.mark.parametrize("namespace", ["localhost:5000", "127.0.0.7:5000", "[::1]:5000"])
def test_loopback_hosts_may_speak_plain_http(namespace: str) -> None:
    endpoint = only(HostsConfig(), namespace)
    assert endpoint.scheme == "https"
    assert endpoint.plain_fallback
    assert endpoint.tls.skip_verify


@pytest.mark.parametrize("namespace", ["localhost:443", "localhost.example:5000", "128.0.0.1:5000"])
def test_other_hosts_may_not(namespace: str) -> None:
    endpoint = only(HostsConfig(), namespace)
    assert endpoint.scheme == "https"
    assert not endpoint.plain_fallback


def test_plain_http_on_request() -> None:
    endpoint = only(HostsConfig(plain_http=True), "registry.example")
    assert endpoint.url == "http://registry.example/v2"


def test_a_hosts_file_in_the_order_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "registry.example").mkdir()
    for name in ("ca.pem", "client.pem", "client.key"):
        (tmp_path / "registry.example" / name).touch()
    (tmp_path / "registry.example" / "hosts.toml").write_text(
        """
        server = "https://upstream.example"
        dial_timeout = "1m0.5s"
        [host."https://z.example/proxy"]
          capabilities = ["pull", "Resolve"]
          ca = "ca.pem"
          client = [["client.pem", "client.key"]]
          proxy = "http://proxy:3128"
        [host."http://a.example:8080/own/root"]
          override_path = true
          skip_verify = true
          header = {X-One = "1", X-Two = ["2", "3"]}
        [host."b.example/v2/"]
        """
    )
    z, a, b, server = HostsConfig(directory=tmp_path).endpoints("registry.example")
    base = tmp_path / "registry.example"
    assert z.url == "https://z.example/proxy/v2"
    assert z.query == "?ns=registry.example"
    assert z.capabilities == {"pull", "resolve"}
    assert z.tls == TLS((base / "ca.pem",), (base / "client.pem", base / "client.key"))
    assert z.proxy == "http://proxy:3128"
    assert z.mirror
    assert a.url == "http://a.example:8080/own/root"
    assert a.headers == (("X-One", "1"), ("X-Two", "2, 3"))
    assert a.tls.skip_verify
    assert b.url == "https://b.example/v2"
    assert b.capabilities == ALL_CAPABILITIES
    assert server.url == "https://upstream.example/v2"
    assert server.dial_timeout == 60.5
    assert not server.mirror


def test_without_a_server_the_registry_itself_comes_last(tmp_path: Path) -> None:
    config = write(tmp_path, "docker.io", '[host."https://mirror.example"]\n')
    mirror, server = config.endpoints("docker.io")
    assert mirror.query == "?ns=docker.io"
    assert server.url == "https://registry-1.docker.io/v2"
    assert server.query == ""


def test_settings_of_the_command_line_hold_where_the_file_is_silent(tmp_path: Path) -> None:
    write(tmp_path, "a.example", '[host."https://b.example"]\nskip_verify = false\n')
    config = HostsConfig(directory=tmp_path, plain_http=True, tls=TLS(skip_verify=True))
    mirror, server = config.endpoints("a.example")
    assert not mirror.tls.skip_verify
    assert mirror.scheme == "https"
    assert server.tls.skip_verify
    assert server.scheme == "http"


@pytest.mark.parametrize(
    ("directories", "chosen"),
    [
        (["_default"], "_default"),
        (["_default", "a.example"], None),
        (["_default", "a.example:5000"], "a.example:5000"),
        (["_default", "a.example:5000", "a.example_5000_"], "a.example_5000_"),
    ],
)
def test_the_directory_of_a_host_with_a_port(
    tmp_path: Path, directories: list[str], chosen: str | None
) -> None:
    for name in directories:
        write(tmp_path, name, f'[host."https://mirror.example"]\nheader = {{X = "{name}"}}\n')
    endpoints = HostsConfig(directory=tmp_path).endpoints("a.example:5000")
    assert endpoints[0].headers == (("X", chosen or "_default"),)


def test_an_unknown_directory_and_an_empty_one(tmp_path: Path) -> None:
    assert only(HostsConfig(directory=tmp_path / "none"), "a.example").host == "a.example"
    (tmp_path / "a.example").mkdir()
    assert only(HostsConfig(directory=tmp_path), "a.example").host == "a.example"


def test_certificate_files_without_a_hosts_file(tmp_path: Path) -> None:
    host = tmp_path / "a.example"
    host.mkdir()
    for name in ("one.crt", "two.crt", "me.cert", "me.key"):
        (host / name).touch()
    endpoint = only(HostsConfig(directory=tmp_path), "a.example")
    assert endpoint.tls.ca == (host / "one.crt", host / "two.crt")
    assert endpoint.tls.client == (host / "me.cert", host / "me.key")


def test_all_problems_are_told_at_once_with_their_keys(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        "a.example",
        """
        server = "ftp://x"
        dail_timeout = "1s"
        [host."https://user@m.example"]
          capabilities = ["pull", "fetch"]
          ca = ["missing.pem", 1]
          client = 3
        [host."https://n.example"]
          ca = "missing.pem"
          client = ["a", ["b", "c", "d"]]
          skip_verify = "yes"
          header = {"bad name" = "x", Split = "a\\r\\nb"}
          override_path = 1
          dial_timeout = "-1s"
          proxy = "http://p/path"
        [host."https://o.example"]
          dial_timeout = "0s"
          capabilities = "pull"
          header = 1
          proxy = "socks5://p"
        [host."https://[bad"]
        [host."https://port.example:0"]
        """,
    )
    with pytest.raises(ConfigError, match=str(tmp_path / "a.example" / "hosts.toml")) as caught:
        config.endpoints("a.example")
    problems = "\n".join(caught.value.problems)
    for expected in [
        "server: expected an http://",
        "dail_timeout: unknown key",
        'host."https://user@m.example": expected an http://',
        'm.example".capabilities: unknown capability "fetch"',
        'm.example".ca: expected a path or',
        'm.example".client: expected a path,',
        'n.example".ca: no such file:',
        'n.example".client: expected a path,',
        'n.example".skip_verify: expected true or false',
        'n.example".header.bad name: expected',
        'n.example".header.Split: expected',
        'n.example".override_path: expected true or false',
        'n.example".dial_timeout: expected a duration above 0',
        'n.example".proxy: expected',
        'o.example".dial_timeout: expected a duration above 0',
        'o.example".capabilities: expected a list',
        'o.example".header: expected a table',
        'o.example".proxy: expected',
        'host."https://[bad": expected',
        'host."https://port.example:0": expected',
    ]:
        assert expected in problems
    assert len(caught.value.problems) == 20


@pytest.mark.parametrize("text", ["= nonsense", "host = 3", 'host = {"https://a" = 1}', "server=1"])
def test_what_is_no_hosts_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        write(tmp_path, "a.example", text).endpoints("a.example")


def test_headers_and_proxies_are_not_shown() -> None:
    endpoint = Endpoint(
        "a", "https", "a", headers=(("Authorization", "hush"),), proxy="http://u:hush@p"
    )
    assert "hush" not in repr(endpoint)
    assert "hush" not in repr(Proxies(http="http://u:hush@p"))


@pytest.mark.parametrize(
    ("no_proxy", "url", "proxied"),
    [
        ("", "https://a.example/", True),
        ("", "https://localhost:5000/", False),
        ("", "https://127.0.0.9/", False),
        ("", "https://[::1]/", False),
        ("*", "https://a.example/", False),
        ("a.example", "https://a.example/", False),
        ("a.example", "https://sub.A.example/", False),
        ("a.example", "https://nota.example/", True),
        (".a.example", "https://a.example/", True),
        (".a.example, b", "https://sub.a.example/", False),
        ("*.a.example", "https://sub.a.example/", False),
        ("a.example:443", "https://a.example:443/", False),
        ("a.example:443", "https://a.example:5000/", True),
        ("10.0.0.0/8", "https://10.1.2.3:5000/", False),
        ("10.0.0.0/8", "https://11.1.2.3/", True),
        ("10.1.2.3", "https://10.1.2.3/", False),
        ("fd00::/8", "https://[fd00::1]/", False),
        ("a/b", "https://10.1.2.3/", True),
    ],
)
def test_which_urls_are_proxied(no_proxy: str, url: str, proxied: bool) -> None:
    proxies = Proxies(http="http://wrong", https="proxy:3128", no_proxy=no_proxy)
    assert proxies.for_url(url) == ("http://proxy:3128" if proxied else "")
