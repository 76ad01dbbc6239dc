"""A real containerd with a root, a state directory and a socket of its own.

It is the `containerd` on PATH, as is its `ctr`: a run against another one puts that one's directory
first.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_SECONDS = 60.0
STOP_SECONDS = 30.0
COMMAND_SECONDS = 120.0
_RUNS = 3
_REAPED = "failed with ECHILD"
"""Of containerd's mountWithHelper (core/mount/mount_linux.go, its issue 4387)."""
CRI_PLUGIN = "io.containerd.grpc.v1.cri"


class Containerd:
    """A containerd and the `ctr` that talks to it."""

    def __init__(
        self, directory: Path, binary: str = "containerd", ctr: str = "ctr", config: str = ""
    ) -> None:
        self.root = directory / "root"
        self.address = directory / "containerd.sock"
        self.log = directory / "containerd.log"
        self._binary, self._ctr = binary, ctr
        self._config = directory / "config.toml"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._config.write_text(
            f"root = {json.dumps(str(self.root))}\n"
            f"state = {json.dumps(str(directory / 'state'))}\n"
            f"{config}\n"
            "[grpc]\n"
            f"address = {json.dumps(str(self.address))}\n"
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        _wait_until_it_answers(self._process, self)

    def kill(self) -> None:
        """Kill it; its containers go on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Let it come to an end; its containers go on."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def argv(self, *arguments: str) -> list[str]:
        """Return the command line of `ctr` for this daemon."""
        return [self._ctr, "--address", str(self.address), *arguments]

    def ctr(self, *arguments: str) -> str:
        """Run `ctr`, which must succeed, and return what it prints.

        A shim whose mount helpers have been reaped by its own signal handler, on a busy machine ten
        times running, gives up: nothing was started, and it is tried again.
        """
        done = self.try_ctr(*arguments)
        for _ in range(_RUNS):
            if done.returncode != 0 and _REAPED in done.stderr:
                done = self.try_ctr(*arguments)
        said = f"{done.stderr}{self.log.read_text()[-2000:]}"
        assert done.returncode == 0, f"ctr {' '.join(arguments)}: {said}"
        return done.stdout

    def printed(self, *arguments: str) -> str:
        """Run something in a container with `ctr`, as `ctr` does, and return what it prints.

        On a busy machine the ctr of 1.6 may give up copying what a short process has printed when
        that has ended: what has printed nothing is run again. So that it prints all or nothing, it
        is to print at once; `at_once` has a script do that.
        """
        said = ""
        for _ in range(_RUNS):
            said = said or self.ctr(*arguments)
        return said

    def try_ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `ctr` to its end, good or bad."""
        return subprocess.run(
            self.argv(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )


def at_once(script: str) -> str:
    """Return a script that prints all that this one does, by one write."""
    return f'said=$({script}); echo "$said"'


def config_version(binary: str = "containerd") -> int:
    """Return the version of the configuration that this containerd is documented to take."""
    done = subprocess.run((binary, "--version"), check=True, capture_output=True, text=True)
    major = re.search(r"\bv?(\d+)\.\d+\.\d+", done.stdout)
    assert major is not None, done.stdout
    return 2 if major[1] == "1" else 3


@contextmanager
def running_containerd(
    directory: Path, *, binary: str = "containerd", ctr: str = "ctr", extra_config: str = ""
) -> Iterator[Containerd]:
    """Run containerd below `directory` until the body ends, without CRI.

    `extra_config` is the TOML of further tables, in version 2 of the configuration.
    """
    config = f'version = 2\ndisabled_plugins = ["{CRI_PLUGIN}"]\n{extra_config}'
    with started(Containerd(directory, binary, ctr, config)) as daemon:
        yield daemon


@contextmanager
def started(daemon: Containerd) -> Iterator[Containerd]:
    """Run containerd until the body ends."""
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[Containerd]:
    """A containerd of this test's own, empty."""
    with running_containerd(tmp_path / "containerd") as running:
        yield running


def _wait_until_it_answers(process: subprocess.Popen[bytes], daemon: Containerd) -> None:
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(daemon.argv("version"), capture_output=True).returncode != 0:
        assert process.poll() is None, f"containerd ended: {daemon.log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, "containerd does not answer"
        time.sleep(0.05)
