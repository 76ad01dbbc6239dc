"""The configuration of the daemon: containerd's sections, in the shapes of all its versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.config import Config, load
from lamina.config.daemon import Daemon, Debug, Grpc, Metrics, Snapshots, host_and_port
from lamina.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_defaults() -> None:
    daemon = Config().daemon
    assert daemon == Daemon(Grpc(), Debug(), Metrics(), Snapshots())
    assert daemon.grpc.address == "/run/lamina/lamina.sock"
    assert (daemon.grpc.uid, daemon.grpc.gid) == (os.geteuid(), os.getegid())
    assert daemon.metrics.address == ""


@pytest.mark.parametrize("version", [2, 3])
def test_sections_at_the_top(file: Path, version: int) -> None:
    file.write_text(
        f"""
        version = {version}
        [grpc]
          address = "/run/x.sock"
          uid = 7
          gid = 8
          tcp_address = "10.0.0.1:1"
          max_recv_message_size = 16777216
        [debug]
          address = "/run/debug.sock"
          level = "debug"
          format = "json"
        [metrics]
          address = "127.0.0.1:1338"
          grpc_histogram = true
        [plugins."io.lamina.daemon.v1.snapshots".aliases]
          fast = "overlayfs"
        """
    )
    assert load(file).daemon == Daemon(
        Grpc(address="/run/x.sock", uid=7, gid=8),
        Debug(level="debug", format="json"),
        Metrics(address="127.0.0.1:1338"),
        Snapshots(aliases={"fast": "overlayfs"}),
    )


def test_sections_among_the_plugins(file: Path) -> None:
    file.write_text(
        """
        version = 4
        [plugins."io.containerd.server.v1.grpc"]
          address = "/run/y.sock"
        [plugins."io.containerd.server.v1.metrics"]
          address = ":9100"
        """
    )
    daemon = load(file).daemon
    assert daemon.grpc.address == "/run/y.sock"
    assert daemon.metrics.address == ":9100"


def test_imported_keys_win_one_by_one(file: Path) -> None:
    file.write_text('imports = ["more.toml"]\n[grpc]\naddress = "/run/a.sock"\nuid = 1')
    file.with_name("more.toml").write_text("[grpc]\nuid = 2")
    grpc = load(file).daemon.grpc
    assert (grpc.address, grpc.uid) == ("/run/a.sock", 2)


def test_all_faults_of_keys_are_reported_together(file: Path) -> None:
    file.write_text(
        """
        version = 3
        metrics = 1
        [grpc]
          sock = "/run/x.sock"
          uid = "root"
        [debug]
          level = true
        [plugins."io.lamina.daemon.v1.snapshots"]
          alias = {}
        """
    )
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.problems == (
        "metrics: expected a table, got 1",
        "grpc.sock: unknown key; known are address, gid, uid",
        "grpc.uid: expected a whole number, got 'root'",
        "debug.level: expected a string, got True",
        'plugins."io.lamina.daemon.v1.snapshots".alias: unknown key; known are aliases',
    )


def test_all_faults_of_values_are_reported_together(file: Path) -> None:
    file.write_text(
        f"""
        version = 3
        [grpc]
          address = "run/x.sock"
          uid = -1
        [debug]
          level = "loud"
          format = "xml"
        [metrics]
          address = "/{"x" * 107}"
        [plugins."io.lamina.daemon.v1.snapshots".aliases]
          quick = "overlay"
          native = "overlayfs"
        """
    )
    with pytest.raises(ConfigError) as caught:
        load(file)
    beginnings = (
        "grpc.address: expected an absolute path, got 'run/x.sock'",
        "grpc.uid: expected the number of a user or group, got -1",
        "debug.level: expected one of trace, debug, info, warn, error, fatal, panic, got 'loud'",
        "debug.format: expected one of text, json, got 'xml'",
        "metrics.address: expected at most 107 bytes and no NUL",
        'plugins."io.lamina.daemon.v1.snapshots".aliases.quick: expected a snapshotter\'s name',
        'plugins."io.lamina.daemon.v1.snapshots".aliases.native: a snapshotter has this name',
    )
    assert len(caught.value.problems) == len(beginnings)
    for fault, beginning in zip(caught.value.problems, beginnings, strict=True):
        assert fault.startswith(beginning)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:1338", ("127.0.0.1", 1338)),
        (":0", ("", 0)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:65535", ("localhost", 65535)),
        ("localhost:65536", None),
        ("localhost", None),
        ("::1:80", None),
        ("host:", None),
        ("host:+1", None),
        ("host:²", None),
    ],
)
def test_host_and_port(address: str, parts: tuple[str, int] | None) -> None:
    assert host_and_port(address) == parts
