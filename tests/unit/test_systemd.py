"""The systemd units: what systemd says of them, and that they agree with the daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lamina.config.daemon import DEFAULT_ADDRESS
from lamina.daemon.serve import GRACE_SECONDS
from tests.fixtures_command import PROGRAM

UNITS = Path(__file__).parents[2] / "deploy/systemd"
SERVICE = (UNITS / "lamina.service").read_text()
SOCKET = (UNITS / "lamina.socket").read_text()
REMOUNTING = re.compile(
    r"^(Protect(System|Home|KernelTunables|KernelModules|KernelLogs|ControlGroups|Proc)"
    r"|Private(Tmp|Devices|Mounts|IPC)|(ReadWrite|ReadOnly|Inaccessible)Paths|MountFlags"
    r"|BindPaths|RootDirectory|TemporaryFileSystem|DynamicUser|RuntimeDirectory)=",
    re.M,
)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/local/bin/lamina", PROGRAM)
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.glob("lamina.*")))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "lamina" in line]
    assert (done.returncode, complaints) == (0, [])


def test_mounts_stay_visible_to_others() -> None:
    assert REMOUNTING.search("ProtectSystem=strict") is not None
    assert REMOUNTING.search(SERVICE) is None


def test_the_socket_is_the_default_one() -> None:
    assert f"ListenStream={DEFAULT_ADDRESS}\n" in SOCKET
    assert "SocketMode=0600\n" in SOCKET


def test_systemd_waits_longer_than_the_daemon() -> None:
    found = re.search(r"^TimeoutStopSec=(\d+)s$", SERVICE, re.M)
    assert found is not None
    assert int(found[1]) >= GRACE_SECONDS + 10
