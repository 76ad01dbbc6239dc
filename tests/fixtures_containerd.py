"""A real containerd with a root, a state directory and a socket of its own.

A test module asks for it with `pytest_plugins = ["tests.fixtures_containerd"]`.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_SECONDS = 30.0
STOP_SECONDS = 10.0


class Containerd:
    """A running containerd and the `ctr` that talks to it."""

    def __init__(self, directory: Path, ctr: str = "ctr") -> None:
        self.root = directory / "root"
        self.address = directory / "containerd.sock"
        self.log = directory / "containerd.log"
        self._ctr = ctr

    def argv(self, *arguments: str) -> list[str]:
        """Return the command line of `ctr` for this daemon."""
        return [self._ctr, "--address", str(self.address), *arguments]

    def ctr(self, *arguments: str) -> str:
        """Run `ctr` and return what it prints."""
        done = subprocess.run(
            self.argv(*arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        said = f"{done.stderr}{self.log.read_text()[-2000:]}"
        assert done.returncode == 0, f"ctr {' '.join(arguments)}: {said}"
        return done.stdout


@contextmanager
def running_containerd(
    directory: Path, *, binary: str = "containerd", ctr: str = "ctr", extra_config: str = ""
) -> Iterator[Containerd]:
    """Run containerd below `directory` until the body ends; `extra_config` is appended TOML."""
    daemon = Containerd(directory, ctr)
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.toml"
    config.write_text(
        "version = 2\n"
        f"root = {json.dumps(str(daemon.root))}\n"
        f"state = {json.dumps(str(directory / 'state'))}\n"
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        "[grpc]\n"
        f"address = {json.dumps(str(daemon.address))}\n" + extra_config
    )
    with daemon.log.open("wb") as log:
        process = subprocess.Popen(
            [binary, "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_it_answers(process, daemon)
        yield daemon
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
