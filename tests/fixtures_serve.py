"""`lamina serve` as a process, and a containerd that uses it as docs/containerd.md says."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fixtures_command import PROGRAM, Command
from tests.fixtures_containerd import CRI_PLUGIN, Containerd, config_version, started

DOCUMENT = Path(__file__).parents[1] / "docs/containerd.md"
START_SECONDS = 60.0
STOP_SECONDS = 60.0
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The preface of a client, and empty SETTINGS."""
HAND_OVER = 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@" 3<&{}'
"""What systemd does to start the service of a socket unit."""
MEASURE = "stats_collect_period = 1\n"
CRI_IMAGES_PLUGIN = "io.containerd.cri.v1.images"
CRI_PLUGINS = {2: (CRI_PLUGIN,), 3: (CRI_PLUGIN, CRI_IMAGES_PLUGIN)}
"""What has to be disabled to have no CRI, by the version of the configuration."""


class Serve:
    """`lamina serve` on a root directory; `command` is the command line on the same root.

    With `socket_unit`, the socket is held by us as it is by systemd for the socket unit.
    """

    def __init__(self, directory: Path, config: str = "", *, socket_unit: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.root = directory / "lamina"
        self.address = directory / "lamina.sock"
        self.log = directory / "lamina.log"
        self.command = Command(self.root)
        self._config = directory / "lamina.toml"
        self._config.write_text(config)
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: socket.socket | None = None
        if socket_unit:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self.address))
            self._listener.listen()

    def start(self) -> None:
        """Start it and wait until it answers."""
        argv = [PROGRAM, "--root", str(self.root), *self.options, "serve"]
        descriptors = []
        if self._listener is None:
            argv += ["--address", str(self.address)]
        else:
            descriptors = [self._listener.fileno()]
            argv = ["bash", "-c", HAND_OVER.format(*descriptors), *argv]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, f"lamina serve ended: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"does not answer: {self.log.read_text()}"
            time.sleep(0.01)

    @property
    def options(self) -> tuple[str, str]:
        """What other commands need to read the same configuration."""
        return ("--config", str(self._config))

    def kill(self) -> None:
        """Kill it as the kernel does when memory is short."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, which it must do with success."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(STOP_SECONDS) == 0, self.log.read_text()

    def close(self) -> None:
        """Do what `stop` does, and close the socket unit's socket."""
        try:
            self.stop()
        finally:
            if self._listener is not None:
                self._listener.close()

    def snapshots(self, name: str) -> list[dict[str, str]]:
        """List the snapshots by the command line on the same root, without the daemon."""
        listed: list[dict[str, str]] = self.command.json(
            "snapshots", "--snapshotter", name, "ls", "--json"
        )
        return listed

    def _answers(self) -> bool:
        """Whether a new connection gets an answer; a socket unit's takes it long before."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(START_SECONDS)
            try:
                client.connect(str(self.address))
                client.sendall(HTTP2_GREETING)
                return client.recv(1) != b""
            except (FileNotFoundError, ConnectionError):
                return False


@pytest.fixture
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serve]:
    """A `lamina serve` of this test's own, empty; marked `socket_unit`, it is started as by one."""
    socket_unit = request.node.get_closest_marker("socket_unit") is not None
    with serving(Serve(tmp_path / "s", socket_unit=socket_unit)) as daemon:
        yield daemon


@pytest.fixture
def proxied(tmp_path: Path, serve: Serve) -> Iterator[Containerd]:
    """A containerd, without CRI, whose proxy plugins are those of `serve`."""
    with started(proxied_containerd(tmp_path / "c", serve)) as daemon:
        yield daemon


@contextmanager
def serving(daemon: Serve) -> Iterator[Serve]:
    """Run `lamina serve` until the body ends."""
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


def proxied_containerd(
    directory: Path, serve: Serve, *, cri: bool = False, sections: Sequence[str] = ()
) -> Containerd:
    """Return a containerd, not started, with the documented configuration.

    CRI, where it is wanted, measures snapshots every second. `sections` are further headings whose
    TOML is added.
    """
    version = config_version()
    config = documented("containerd 2.x" if version == 3 else "containerd 1.6 and 1.7")
    top = f"version = {version}\n"
    if not cri:
        config = config.replace(
            top, f"{top}disabled_plugins = {json.dumps(CRI_PLUGINS[version])}\n"
        )
    elif version == 2:
        config += f'[plugins."{CRI_PLUGIN}"]\n{MEASURE}'
    else:
        table = f'[plugins."{CRI_IMAGES_PLUGIN}"]\n'
        config = config.replace(table, table + MEASURE)
    config = "\n".join((config, *map(documented, sections)))
    return Containerd(directory, config=localised(config, serve, directory / "root"))


def documented(heading: str) -> str:
    """Return the first TOML below a heading of docs/containerd.md."""
    found = re.search(
        rf"^## {re.escape(heading)}\n.*?^```toml\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S
    )
    assert found is not None, f"no TOML below {heading!r} in {DOCUMENT}"
    return found[1]


def localised(config: str, serve: Serve, containerd_root: Path) -> str:
    """Put a test's own places where a documented configuration has those of a real machine."""
    for documented_path, path in (
        ("/run/lamina/lamina.sock", serve.address),
        ("/var/lib/lamina", serve.root),
        ("/var/lib/containerd", containerd_root),
    ):
        config = config.replace(documented_path, str(path))
    return config
