"""The contract of containerd's snapshotters as a class of tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from lamina.core.driver import Ability, Driver
from lamina.core.snapshot import Snapshotter
from lamina.errors import SnapshotterSkipped
from lamina.snapshotters.engine import Engine
from lamina.testing.checks.content import ContentChecks
from lamina.testing.checks.forks import ForkChecks
from lamina.testing.checks.lifecycle import LifecycleChecks
from lamina.testing.checks.mapping import MappingChecks
from lamina.testing.checks.records import RecordChecks
from lamina.testing.checks.storage import StorageChecks
from lamina.testing.serving import served
from lamina.testing.subject import remove_all, why_not_mount

ACCESSES = ("in-process", "grpc")


class SnapshotterContract(
    LifecycleChecks, RecordChecks, ContentChecks, MappingChecks, ForkChecks, StorageChecks
):
    """Derive a test class from it, and pytest runs every check, each on storage of its own.

        from lamina.testing import SnapshotterContract

        class TestExample(SnapshotterContract):
            plugin = "example"

    A check is a method; a class may override one, and has the fixtures below for more of its own.
    Checks are skipped, with the reason, without root, where the plugin says that the machine lacks
    something, and where they need an ability that the driver does not declare, or `fork`.

    Attributes:
        accesses: how the checks reach the snapshotter, each in turn: `in-process` calls it, `grpc`
            goes through a server and a client on a socket.
        differences: checks that do not hold for this driver, by their names without `test_`, each
            with the reason, which is shown as that of its being skipped.
    """

    accesses: ClassVar[Sequence[str]] = ACCESSES
    differences: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        for name in cls.differences:
            if not hasattr(cls, f"test_{name}"):
                raise TypeError(f"{cls.__name__}.differences: there is no check {name!r}")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run what uses `snapshotter` once for each access; called by pytest."""
        if "access" in metafunc.fixturenames:
            metafunc.parametrize("access", self.accesses)

    @pytest.fixture(autouse=True)
    def _is_possible(self, request: pytest.FixtureRequest) -> None:
        name = request.function.__name__.removeprefix("test_")
        if name in self.differences:
            pytest.skip(self.differences[name])
        if reason := why_not_mount():
            pytest.skip(reason)

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """The snapshotter's directory."""
        return tmp_path / "snapshotter"

    @pytest.fixture
    def work(self, tmp_path: Path) -> Path:
        """A scratch directory, for mount points too."""
        directory = tmp_path / "work"
        directory.mkdir()
        return directory

    @pytest.fixture
    def driver(self, root: Path) -> Iterator[Driver]:
        """The driver on an empty directory, without the engine."""
        try:
            driver = self.load(root)
        except SnapshotterSkipped as skipped:
            pytest.skip(str(skipped))
        yield driver
        for id in list(driver.ids()):
            driver.destroy(id)
        driver.close()

    @pytest.fixture
    def engine(self, root: Path) -> Iterator[Engine]:
        """The snapshotter, empty; after the check, nothing of it may be damaged or stay behind."""
        try:
            opened = self.open(root)
        except SnapshotterSkipped as skipped:
            pytest.skip(str(skipped))
        with opened as engine:
            yield engine
        with self.open(root) as engine:
            assert engine.fsck() == []
            remove_all(engine)
            assert not engine.pending()
        driver = self.load(root)
        assert list(driver.ids()) == []
        driver.close()

    @pytest.fixture
    def snapshotter(self, engine: Engine, access: str) -> Iterator[Snapshotter]:
        """The snapshotter as `access` reaches it."""
        if access == "in-process":
            yield engine
            return
        with served(engine) as remote:
            yield remote

    @pytest.fixture
    def abilities(self, engine: Engine) -> frozenset[Ability]:
        """What the driver declares to be able to do."""
        return engine.abilities
