"""A root of Lamina's own for one measurement."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path
from typing import Self

from bench.process import wait_for_janitor
from bench.startup import LAMINA
from lamina.lazy.launch import LazyWorker
from lamina.mount import unmount_recursive
from tests.killing import kill_all

_LAZY = ("stargz", "nydus", "overlaybd")
_SECTION = """[plugins."io.containerd.snapshotter.v1.{name}"]
gate = "{gate}"
no_background_fetch = {quiet}
"""
_numbers = itertools.count()


class Root:
    """A root of its own whose images are pulled with one snapshotter; a context manager.

    Args:
        directory: that it is made in.
        snapshotter: which.
        gate: of lazy layers.
        quiet: fetch nothing that is not read.
    """

    def __init__(
        self, directory: Path, snapshotter: str, gate: str = "auto", *, quiet: bool = False
    ) -> None:
        self.path = directory / f"root-{next(_numbers)}"
        self.path.mkdir()
        self.snapshotter = snapshotter
        config = self.path / "config.toml"
        said = _SECTION.format(name=snapshotter, gate=gate, quiet=str(quiet).lower())
        config.write_text("version = 3\n" + (said if snapshotter in _LAZY else ""))
        self._lamina = [LAMINA, "--root", str(self.path), "--config", str(config)]

    def argv(self, *arguments: str) -> list[str]:
        """Return a command line."""
        return [*self._lamina, *arguments]

    def pull(self, reference: str) -> None:
        """Pull an image."""
        self("images", "pull", "--quiet", "--plain-http", *self._with, reference)

    def mount(self, reference: str) -> Path:
        """Mount an image and return where."""
        place = self.path / f"mounted-{next(_numbers)}"
        place.mkdir()
        self("images", "mount", *self._with, reference, str(place))
        return place

    def __call__(self, *arguments: str) -> None:
        """Run a command; its failure ends the benchmark."""
        argv = self.argv(*arguments)
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    @property
    def worker(self) -> LazyWorker:
        """The worker of the snapshotter."""
        return LazyWorker(self.path / f"io.containerd.snapshotter.v1.{self.snapshotter}")

    def _processes(self) -> list[int]:
        pgrep = ("pgrep", "-f", f"{self.path}(/| |$)")
        found = subprocess.run(pgrep, stdout=subprocess.PIPE, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    @property
    def _with(self) -> tuple[str, str]:
        return ("--snapshotter", self.snapshotter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Unmount and delete it, once nothing of it runs."""
        wait_for_janitor(self.path)
        unmount_recursive(self.path)
        # A worker that is left would go on to fetch, over the network of the next measurement.
        kill_all(self._processes)
        unmount_recursive(self.path)
        shutil.rmtree(self.path)
