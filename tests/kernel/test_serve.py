"""`lamina serve` as a process: readiness, calls, signals, sockets, logs, metrics, its janitor."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lamina.api.channel import Channel
from lamina.api.client import RemoteSnapshotter
from lamina.core.snapshot import Kind
from lamina.errors import InvalidArgument, LaminaError, NotFound, NotImplementedHere
from tests.fixtures_command import PROGRAM, Command
from tests.fixtures_containers import wait_for

pytestmark = [pytest.mark.root]

SECONDS = 60.0
_LISTENS = "00010000"
"""__SO_ACCEPTCON, as /proc/net/unix shows it."""
FILES = 8000
"""As many take the native snapshotter a second or so to copy."""


class Daemon:
    """One `lamina serve`, told of its readiness as systemd is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.address = directory / "run" / "lamina.sock"
        self.log = directory / "log"
        self.config = directory / "config.toml"
        self.config.write_text("")
        self.command = Command(self.root)
        self.process: subprocess.Popen[bytes] | None = None
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(directory / "notify"))
        self.manager.settimeout(SECONDS)
        self._channels: list[Channel] = []

    def argv(self, *options: str) -> list[str]:
        words = ["--root", str(self.root), "--config", str(self.config), "serve"]
        return [PROGRAM, *words, "--address", str(self.address), *options]

    def start(self, *options: str, **environ: str) -> None:
        """Start it and wait until it says that it is ready."""
        environ = {**os.environ, "NOTIFY_SOCKET": str(self.directory / "notify"), **environ}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.argv(*options), env=environ, stderr=log)
        assert self.told().startswith("READY=1\nSTATUS=serving on ")

    def told(self) -> str:
        """Return what the service manager is told next."""
        return self.manager.recv(1000).decode()

    def drain(self) -> None:
        """Take all that the service manager has been told."""
        while select.select([self.manager], [], [], 0)[0]:
            self.told()

    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid(), number)

    def wait(self) -> int:
        """Return the exit code."""
        assert self.process is not None
        return self.process.wait(SECONDS)

    def snapshotter(self, name: str) -> RemoteSnapshotter:
        channel = Channel(self.address)
        self._channels.append(channel)
        return RemoteSnapshotter(channel, name)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def says(self, text: str) -> None:
        """Wait for a log line with that text; a thread of the daemon's writes them."""
        wait_for(lambda: text in self.log.read_text())

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self.manager.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.close()


def many_files(daemon: Daemon) -> None:
    """Commit a native snapshot `big` that takes a while to copy."""
    native = daemon.snapshotter("native")
    tree = Path(native.prepare("fill")[0].source)
    for number in range(FILES):
        (tree / str(number)).touch()
    native.commit("big", "fill")


def wait_until_copying(daemon: Daemon) -> None:
    """Wait until a second native snapshot is being made."""
    storage = daemon.root / "io.containerd.snapshotter.v1.native" / "snapshots"
    wait_for(lambda: len(list(storage.iterdir())) > 1)


def test_two_snapshotters_from_start_to_stop(daemon: Daemon) -> None:
    daemon.start()
    assert stat.S_IMODE(daemon.address.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.address.parent.stat().st_mode) == 0o711
    for name in ("overlayfs", "lamina-native"):
        snapshotter = daemon.snapshotter(name)
        mounts = snapshotter.prepare("a key/with: all", labels={"x": "y"})
        assert mounts == snapshotter.mounts("a key/with: all")
        snapshotter.commit("c", "a key/with: all")
        assert snapshotter.stat("c").kind == Kind.COMMITTED
        snapshotter.remove("c")
        with pytest.raises(NotFound):
            snapshotter.stat("c")
    daemon.signal(signal.SIGTERM)
    assert daemon.told() == "STOPPING=1\nSTATUS=waiting for running calls"
    assert daemon.wait() == 0
    assert not daemon.address.exists()
    assert "msg=stopped" in daemon.lines()[-1]
    assert daemon.command.out("fsck") == ""


def test_idle_memory(daemon: Daemon) -> None:
    daemon.start("--metrics-address", "127.0.0.1:0")
    daemon.snapshotter("overlayfs").prepare("k")
    status = Path(f"/proc/{daemon.pid()}/status").read_text()
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert resident is not None
    assert int(resident[1]) <= 60 * 1024


def test_killed_and_started_again(daemon: Daemon) -> None:
    daemon.start()
    snapshotter = daemon.snapshotter("overlayfs")
    mounts = snapshotter.prepare("k")
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    assert daemon.address.is_socket()
    daemon.start()
    assert snapshotter.mounts("k") == mounts


def test_a_living_daemons_socket_is_left_to_it(daemon: Daemon) -> None:
    daemon.start()
    second = subprocess.run(daemon.argv(), capture_output=True, timeout=SECONDS, check=False)
    assert second.returncode == 7
    said = second.stderr.decode().splitlines()[-1]
    assert said.startswith(
        f"lamina: listen: lamina serve (process {daemon.pid()}) listens there already"
        f' "{daemon.address}": failed precondition; stop it first'
    )
    assert list(daemon.snapshotter("native").walk()) == []


def test_many_that_start_at_once_where_one_has_died(daemon: Daemon) -> None:
    daemon.start()
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    many = [subprocess.Popen(daemon.argv(), stderr=subprocess.PIPE) for _ in range(5)]
    try:
        deadline = time.monotonic() + SECONDS
        while sum(each.poll() is None for each in many) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (winner,) = [each for each in many if each.poll() is None]
        assert [each.returncode for each in many if each is not winner] == [7] * 4
        daemon.snapshotter("overlayfs").prepare("k")
        winner.send_signal(signal.SIGTERM)
        assert winner.wait(SECONDS) == 0
    finally:
        for each in many:
            each.kill()
            each.communicate()


def test_one_that_fails_later_takes_no_other_down(daemon: Daemon) -> None:
    path = daemon.directory / "metrics.sock"
    daemon.start("--metrics-address", str(path))
    overlayfs, native = daemon.snapshotter("overlayfs"), daemon.snapshotter("native")
    overlayfs.prepare("k")
    for file in (daemon.root / "io.containerd.snapshotter.v1.overlayfs").glob("snapshots.sqlite*"):
        file.write_bytes(b"lost" * 10_000)
    for number in range(3):
        with pytest.raises(LaminaError):
            overlayfs.prepare(f"k {number}")
        native.prepare(f"k {number}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /v1/metrics HTTP/1.0\r\n\r\n")
        page = b"".join(iter(lambda: client.recv(65536), b""))
    assert b'lamina_snapshotter_up{snapshotter="native"} 1.0' in page
    assert b'lamina_snapshotter_up{snapshotter="overlayfs"} 0.0' in page


def test_names_that_lead_nowhere(daemon: Daemon) -> None:
    daemon.config.write_text(
        """
        version = 3
        disabled_plugins = ["io.containerd.snapshotter.v1.native"]
        [plugins."io.lamina.daemon.v1.snapshots".aliases]
          fast = "overlayfs"
          slow = "native"
        """
    )
    daemon.start()
    daemon.snapshotter("fast").prepare("k")
    assert daemon.snapshotter("overlayfs").stat("k").kind == Kind.ACTIVE
    for name in ("native", "lamina-native", "slow"):
        with pytest.raises(InvalidArgument) as caught:
            daemon.snapshotter(name).stat("k")
        assert str(caught.value) == (
            f"snapshotter not loaded: {name}: disabled by {daemon.config};"
            " remove io.containerd.snapshotter.v1.native from disabled_plugins there"
            ": invalid argument"
        )
    with pytest.raises(InvalidArgument, match=r"not loaded: nosuch.*there are .*overlayfs"):
        daemon.snapshotter("nosuch").stat("k")
    with pytest.raises(InvalidArgument, match="snapshotter argument missing"):
        daemon.snapshotter("").stat("k")
    with Channel(daemon.address) as channel, pytest.raises(NotImplementedHere):
        channel.unary("/no.such.Service/Method", b"")
    daemon.says("method=/no.such.Service/Method")
    skipped = [line for line in daemon.lines() if "snapshotter=native" in line]
    assert len([line for line in skipped if 'msg="skipping snapshotter"' in line]) == 1


def test_faults_of_the_configuration(daemon: Daemon) -> None:
    daemon.config.write_text("[grpc]\nuid = 'root'\nsock = '/x'\n[debug]\nlevel = 1")
    done = subprocess.run(daemon.argv(), capture_output=True, timeout=SECONDS, check=False)
    assert done.returncode == 2
    for fault in ("grpc.uid: ", "grpc.sock: ", "debug.level: "):
        assert fault in done.stderr.decode()
    daemon.config.write_text("")
    for options, fault in (
        (("--log-level", "loud"), "level: expected one of"),
        (("--metrics-address", "nowhere"), "metrics.address: expected HOST:PORT"),
        (("--address", "/run/containerd/containerd.sock"), "containerd's own socket"),
    ):
        argv = daemon.argv(*options)
        done = subprocess.run(argv, capture_output=True, timeout=SECONDS, check=False)
        assert (done.returncode, fault in done.stderr.decode()) == (2, True), done.stderr


def test_slow_work_delays_nobody_else(daemon: Daemon) -> None:
    daemon.start()
    many_files(daemon)
    native, overlayfs = daemon.snapshotter("native"), daemon.snapshotter("overlayfs")
    overlayfs.prepare("k")
    slow = threading.Thread(target=native.prepare, args=("slow", "big"))
    began = time.monotonic()
    slow.start()
    others = []
    for number in range(1000):
        before = time.monotonic()
        overlayfs.stat("k")
        daemon_other = native if number % 2 else overlayfs
        daemon_other.prepare(f"other {number}")
        others.append(time.monotonic() - before)
        if not slow.is_alive():
            break
    slow.join()
    took = time.monotonic() - began
    assert len(others) > 10
    assert sorted(others)[len(others) // 2] < took / 10


def test_the_first_signal_waits_for_running_calls(daemon: Daemon) -> None:
    daemon.start()
    many_files(daemon)
    native = daemon.snapshotter("native")
    failures: list[Exception] = []

    def prepare() -> None:
        try:
            native.prepare("slow", "big")
        except Exception as error:
            failures.append(error)

    slow = threading.Thread(target=prepare)
    slow.start()
    wait_until_copying(daemon)
    daemon.signal(signal.SIGINT)
    slow.join()
    assert (daemon.wait(), failures) == (0, [])
    listed = daemon.command.json("snapshots", "--snapshotter", "native", "ls", "--json")
    assert [each["Name"] for each in listed] == ["big", "slow"]


def test_the_second_signal_does_not(daemon: Daemon) -> None:
    daemon.start()
    many_files(daemon)
    native = daemon.snapshotter("native")

    def prepare() -> None:
        with contextlib.suppress(LaminaError):
            for number in range(100):
                native.prepare(f"slow {number}", "big")

    slow = threading.Thread(target=prepare)
    slow.start()
    wait_until_copying(daemon)
    daemon.signal(signal.SIGTERM)
    assert daemon.told().startswith("STOPPING=1")
    time.sleep(0.6)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() in {0, 128 + signal.SIGTERM}  # 0 where the copying is that fast
    slow.join()
    assert daemon.command.out("fsck") == ""


def test_a_logins_limit_of_descriptors_is_raised(daemon: Daemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        daemon.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert daemon.process is not None
    assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_hanging_up_changes_nothing(daemon: Daemon) -> None:
    daemon.start()
    daemon.signal(signal.SIGHUP)
    daemon.snapshotter("overlayfs").prepare("k")
    daemon.says("ignoring SIGHUP")


def test_watchdog(daemon: Daemon) -> None:
    daemon.start(WATCHDOG_USEC="200000")
    daemon.drain()  # on a busy machine some have come before anybody has looked
    began = time.monotonic()
    assert [daemon.told() for _ in range(5)] == ["WATCHDOG=1"] * 5
    assert 0.25 < time.monotonic() - began < 5


def test_the_command_line_beside_the_daemon(daemon: Daemon) -> None:
    daemon.start()
    overlayfs = daemon.snapshotter("overlayfs")
    overlayfs.prepare("of the daemon")
    daemon.command.run("snapshots", "prepare", "of the command")
    assert {info.name for info in overlayfs.walk()} == {"of the daemon", "of the command"}
    daemon.command.run("snapshots", "rm", "of the daemon")
    overlayfs.remove("of the command")
    assert daemon.command.json("snapshots", "ls", "--json") == []
    remote = daemon.command.json("snapshots", "--address", daemon.address, "ls", "--json")
    assert remote == []


@pytest.mark.parametrize("format", ["text", "json"])
def test_logs(daemon: Daemon, format: str) -> None:
    daemon.start("--log-format", format)
    with pytest.raises(NotFound):
        daemon.snapshotter("overlayfs").prepare("k", "no such\nparent", labels={"t": "s3cret"})
    daemon.signal(signal.SIGTERM)
    daemon.wait()
    assert "s3cret" not in daemon.log.read_text()
    (line,) = [line for line in daemon.lines() if "call failed" in line]
    if format == "json":
        assert all(json.loads(line)["time"] for line in daemon.lines())
        fields = json.loads(line)
    else:
        pattern = r'(\w+)=("(?:[^"\\]|\\.)*"|[^ "]*)(?: |$)'
        assert all(re.fullmatch(rf"(?:{pattern})+", line) for line in daemon.lines())
        fields = {key: value.strip('"') for key, value in re.findall(pattern, line)}
    assert (fields["level"], fields["method"], fields["code"]) == ("info", "Prepare", "NotFound")
    assert (fields["snapshotter"], fields["key"]) == ("overlayfs", "k")
    assert re.fullmatch(r"\d+\.\d{3}ms", fields["duration"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", fields["time"])


def test_metrics(daemon: Daemon) -> None:
    daemon.config.write_text('[metrics]\naddress = "127.0.0.1:0"')
    daemon.start()
    overlayfs = daemon.snapshotter("lamina-overlayfs")
    overlayfs.prepare("k")
    overlayfs.stat("k")
    with pytest.raises(NotFound):
        overlayfs.remove("nosuch")
    daemon.says('serving metrics" address=')
    found = re.search(r'serving metrics" address="([^"]+)"', daemon.log.read_text())
    assert found is not None
    with urllib.request.urlopen(f"http://{found[1]}/v1/metrics", timeout=SECONDS) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    calls = {
        (sample.labels["method"], sample.labels["snapshotter"], sample.labels["code"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "lamina_rpc_duration_seconds_count"
    }
    assert calls == {
        ("Prepare", "overlayfs", "OK"): 1,
        ("Stat", "overlayfs", "OK"): 1,
        ("Remove", "overlayfs", "NotFound"): 1,
    }


def test_metrics_on_a_unix_socket(daemon: Daemon) -> None:
    path = daemon.directory / "metrics.sock"
    daemon.start("--metrics-address", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /v1/metrics HTTP/1.0\r\n\r\n")
        assert client.recv(15) == b"HTTP/1.1 200 OK"
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not path.exists()


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found += map(int, task.read_text().split())
    return found


def test_removed_storage_is_freed_and_the_janitor_reaped(daemon: Daemon) -> None:
    daemon.start()
    native = daemon.snapshotter("native")
    for number in range(20):
        (Path(native.prepare(str(number))[0].source) / "file").touch()
    for number in range(20):
        native.remove(str(number))
    storage = daemon.root / "io.containerd.snapshotter.v1.native" / "snapshots"
    deadline = time.monotonic() + SECONDS
    while list(storage.iterdir()) or children(daemon.pid()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listens(path: Path) -> bool:
    """Whether the socket is listened on; its file is there before."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    fields = (line.split(maxsplit=7) for line in lines)
    return any(words[3] == _LISTENS and words[7:] == [str(path)] for words in fields)


@pytest.mark.skipif(
    not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed"
)
def test_socket_activation(daemon: Daemon) -> None:
    path = daemon.directory / "activated.sock"
    activate = ["systemd-socket-activate", "--listen", str(path)]
    with daemon.log.open("ab") as log:
        daemon.process = subprocess.Popen([*activate, *daemon.argv()], stderr=log)
    wait_for(lambda: listens(path))
    with Channel(path) as channel:
        RemoteSnapshotter(channel, "overlayfs").prepare("k")
    assert not daemon.address.exists()
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert path.exists()  # it is the service manager's


def test_the_level_of_the_log(daemon: Daemon) -> None:
    daemon.start("--log-level", "warn")
    daemon.snapshotter("overlayfs").prepare("k")
    assert daemon.lines() == []
