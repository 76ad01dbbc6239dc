"""`lamina doctor` as it is typed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lamina.snapshotters import DRIVERS
from tests.fixtures_command import Command
from tests.startup import HEAVY, imported

pytestmark = [pytest.mark.root, pytest.mark.overlay]


def findings(plain: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {finding["Name"]: finding for finding in plain["Findings"]}


def test_a_healthy_machine(command: Command) -> None:
    """The root is not made, and nothing is left where everything was tried."""
    plain = command.json("doctor", "--json")
    assert not command.root.exists()
    assert list(command.root.parent.glob(".lamina-probe*")) == []
    found = findings(plain)
    assert {"kernel", "privileges", "OCI runtime", "cgroups", "seccomp", "clock", "root"} <= {
        *found
    }
    assert {"space", "d_type", "attributes", "daemon", "configuration", "containerd"} <= {*found}
    assert "not made yet" in found["root"]["Detail"]
    assert {finding["Level"] for finding in found.values()} <= {"ok", "note", "warn"}
    backends = {backend["ID"]: backend for backend in plain["Snapshotters"]}
    assert list(backends)[:12] == sorted(DRIVERS)
    assert plain["Best"]["ID"] == "overlayfs"
    assert plain["Best"]["Why"]
    needs = {need["What"]: need for need in backends["overlayfs"]["Needs"]}
    assert needs["overlay mounts"]["Met"] is True
    assert needs["overlay mounts"]["Tried"] == "mount an overlay with an upper directory"


def test_as_text(command: Command) -> None:
    said = command.out("doctor")
    assert "ok    kernel " in said
    assert "needs overlay mounts: yes (tried to mount an overlay with an upper directory)\n" in said
    assert said.splitlines()[-1].startswith("Best here: overlayfs: ")


def test_of_a_store(command: Command) -> None:
    command.run("snapshots", "prepare", "a")
    command.run("snapshots", "cleanup")
    found = findings(command.json("doctor", "--json"))
    assert found["store"]["Detail"] == "records and disk agree"
    assert (found["janitor"]["Level"], found["mounts"]["Level"]) == ("ok", "ok")
    shutil.rmtree(command.root / "io.containerd.snapshotter.v1.overlayfs/snapshots/1")
    done = command.run("doctor", code=7)
    assert b"1 problems, such as overlayfs: a: its storage is gone" in done.stdout
    assert b"fix: lamina fsck explains them" in done.stdout
    assert done.stderr.startswith(b"lamina: doctor: broken: store: ")
    command.run("fsck", "--repair")
    command.run("doctor")


def test_a_store_that_cannot_be_examined(command: Command) -> None:
    command.run("snapshots", "prepare", "key")
    owners = command.root / "owners"
    command.run("leases", "create")
    for path in owners.iterdir():
        path.unlink()
    owners.rmdir()
    owners.touch()
    plain = json.loads(command.run("doctor", "--json", code=7).stdout)
    store = findings(plain)["store"]
    assert store["Level"] == "bad"
    assert store["Detail"] == f"cannot be examined: File exists: {owners}"
    assert plain["Best"]["ID"] == "overlayfs"


def test_a_wrong_configuration(command: Command, tmp_path: Path) -> None:
    """All its faults are told, and the rest is examined all the same."""
    config = tmp_path / "config.toml"
    config.write_text(
        "version = 3\n[plugins.'io.containerd.snapshotter.v1.overlayfs']\nsync_remove = 'yes'\n"
        "nonsense = 1\n"
    )
    done = command.run("doctor", "--json", "--config", config, code=7)
    plain = json.loads(done.stdout)
    found = findings(plain)["configuration"]
    assert found["Level"] == "bad"
    assert "sync_remove" in found["Detail"]
    assert "nonsense" in found["Detail"]
    assert plain["Best"]["ID"] == "overlayfs"
    config.write_text(f"version = 3\nroot = '{command.root}'\n")
    found = findings(command.json("doctor", "--json", "--config", config))["configuration"]
    assert found["Detail"] == f"{config} is in order"


def test_disabled_and_wrong_snapshotters(command: Command, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        "version = 3\ndisabled_plugins = ['io.containerd.snapshotter.v1.overlayfs']\n"
    )
    plain = command.json("doctor", "--json", "--config", config)
    [overlay] = [b for b in plain["Snapshotters"] if b["ID"] == "overlayfs"]
    assert overlay["Reason"] == f"disabled by {config}"
    assert "disabled_plugins" in overlay["Fix"]
    assert plain["Best"]["ID"] != "overlayfs"


@pytest.mark.userns
def test_without_privileges(command: Command) -> None:
    command.root.mkdir(mode=0o777)
    command.root.chmod(0o777)
    nobody = ["unshare", "--user", "--map-user=987654", "--map-group=987654"]
    argv = [*nobody, *command.argv("doctor", "--json")]
    done = subprocess.run(argv, capture_output=True, check=True)
    plain = json.loads(done.stdout)
    found = findings(plain)
    assert "may not mount" in found["privileges"]["Detail"]
    assert found["privileges"]["Fix"].startswith("run as root")
    [overlay] = [b for b in plain["Snapshotters"] if b["ID"] == "overlayfs"]
    assert overlay["Status"] == "skip"
    assert [need["Met"] for need in overlay["Needs"]] == [False, True, False]
    assert plain["Best"]["ID"] == "native"


@contextmanager
def tmpfs(path: Path, options: str) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_and_a_read_only_one(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    command = Command(disk)
    with tmpfs(disk, "size=1m"):
        (disk / "file").write_bytes(bytes((1 << 20) - 8192))
        found = findings(command.json("doctor", "--json"))
        assert found["space"]["Level"] == "warn"
        try:
            (disk / "more").write_bytes(bytes(1 << 20))
        except OSError:
            pass
        found = findings(json.loads(command.run("doctor", "--json", code=7).stdout))
        assert (found["space"]["Level"], found["space"]["Detail"][:5]) == ("bad", "0.0 B")
        (disk / "more").unlink()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = command.run("doctor", "--json", code=7)
        found = findings(json.loads(done.stdout))
        assert found["root"]["Level"] == found["attributes"]["Level"] == "bad"
        assert found["root"]["Fix"] == f"mount -o remount,rw {disk}"


def test_what_killed_ones_left_is_swept(command: Command) -> None:
    """Not what a living one is at."""
    command.root.mkdir()
    left = command.root / ".lamina-probe-1-dead"
    (left / "probe-1-1/at").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", left / "probe-1-1/at"], check=True)
    busy = command.root / ".lamina-probe-1-busy"
    busy.mkdir()
    with subprocess.Popen(["flock", busy, "sleep", "60"]) as process:
        time.sleep(1.1)
        command.run("plugins", "ls")
        assert [path.name for path in command.root.glob(".lamina-probe*")] == [busy.name]
        process.kill()


def test_plugins_ls_killed_at_any_time(command: Command) -> None:
    command.root.mkdir()
    for milliseconds in range(60, 200, 10):
        process = command.start("plugins", "ls")
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    time.sleep(1.1)
    command.run("plugins", "ls")
    assert list(command.root.glob(".lamina-probe*")) == []
    assert command.out("fsck") == ""


def test_a_daemon_on_this_root(command: Command, tmp_path: Path) -> None:
    socket = tmp_path / "lamina.sock"
    process = command.start("serve", "--address", socket)
    deadline = time.monotonic() + 20
    while not socket.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    found = findings(command.json("doctor", "--json"))["daemon"]
    assert found["Detail"] == f"serves this root: process {process.pid}"
    assert (
        findings(command.json("doctor", "--json", "--root", tmp_path / "other"))["daemon"]["Level"]
        == "note"
    )
    command.stop(process, signal.SIGTERM)
    assert findings(command.json("doctor", "--json"))["daemon"]["Level"] == "note"


def test_help_imports_nothing_heavy() -> None:
    for verb in ("doctor", "fsck", "leases", "content"):
        assert imported(verb, "--help") & (HEAVY | {"lamina.store", "sqlite3"}) == set()
