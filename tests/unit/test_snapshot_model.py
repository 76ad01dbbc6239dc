"""The engine against a model that fits on one page, driven by generated sequences of calls.

It is called in this process, and over gRPC.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from lamina.core.driver import Ability
from lamina.core.mount import Mount
from lamina.core.snapshot import Info, Kind, Snapshotter
from lamina.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LaminaError,
    NotFound,
)
from lamina.snapshotters.engine import Engine
from lamina.testing.serving import served
from tests.file_driver import FileDriver

KEYS = st.sampled_from(["", "a", "b", "c", "d", "e"])
LABELS = st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["", "1", "2"]))
Error = type[LaminaError]


@dataclass
class Entry:
    kind: Kind
    parent: str
    labels: dict[str, str]
    mounts: list[Mount]


class RebasingDriver(FileDriver):
    abilities = frozenset({Ability.REBASE})


class InProcess(RuleBasedStateMachine):
    """What it has done, and the examples and operations that it is to do at least."""

    operations: ClassVar = 0
    examples: ClassVar = 220
    at_least: ClassVar = 10_000

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.opened = ExitStack()
        self.model: dict[str, Entry] = {}
        self.open()

    def open(self) -> None:
        root = self.directory
        self.engine = Engine("model", RebasingDriver(root), root, boot="one")
        self.opened.callback(self.engine.close)
        self.snapshotter = self.reached()

    def reached(self) -> Snapshotter:
        return self.engine

    def teardown(self) -> None:
        self.opened.close()
        self.stack.close()

    def check(self, expected: Error | None, call: Callable[[], Any]) -> Any:
        """Call; return what it returned, or None where it was to fail and did."""
        type(self).operations += 1
        if expected is None:
            return call()
        with pytest.raises(LaminaError) as caught:
            call()
        assert type(caught.value) is expected
        return None

    @rule(kind=st.sampled_from([Kind.ACTIVE, Kind.VIEW]), key=KEYS, parent=KEYS, labels=LABELS)
    def create(self, kind: Kind, key: str, parent: str, labels: dict[str, str]) -> None:
        expected: Error | None = None
        if parent and parent not in self.model:
            expected = NotFound
        elif not key or (parent and self.model[parent].kind != Kind.COMMITTED):
            expected = InvalidArgument
        elif key in self.model:
            expected = AlreadyExists
        call = self.snapshotter.prepare if kind == Kind.ACTIVE else self.snapshotter.view
        mounts = self.check(expected, lambda: call(key, parent, labels=labels))
        if expected is None:
            self.model[key] = Entry(kind, parent, {k: v for k, v in labels.items() if v}, mounts)

    @rule(name=KEYS, key=KEYS, parent=KEYS, labels=LABELS)
    def commit(self, name: str, key: str, parent: str, labels: dict[str, str]) -> None:
        expected = self.commit_error(name, key, parent)
        call = self.snapshotter.commit
        self.check(expected, lambda: call(name, key, labels=labels, parent=parent))
        if expected is None:
            old = self.model.pop(key)
            kept = {k: v for k, v in labels.items() if v}
            self.model[name] = Entry(Kind.COMMITTED, old.parent or parent, kept, [])

    def commit_error(self, name: str, key: str, parent: str) -> Error | None:
        if not name:
            return InvalidArgument
        if name in self.model:
            return AlreadyExists
        if key not in self.model:
            return NotFound
        entry = self.model[key]
        if entry.kind != Kind.ACTIVE:
            return FailedPrecondition
        if not parent or entry.parent == parent:
            return None
        if entry.parent:
            return InvalidArgument
        if parent not in self.model:
            return NotFound
        return None if self.model[parent].kind == Kind.COMMITTED else FailedPrecondition

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        expected: Error | None = None
        if key not in self.model:
            expected = NotFound
        elif any(entry.parent == key for entry in self.model.values()):
            expected = FailedPrecondition
        self.check(expected, lambda: self.snapshotter.remove(key))
        if expected is None:
            del self.model[key]

    @rule(key=KEYS, labels=LABELS, paths=st.sampled_from([(), ("labels.x",), ("labels", "kind")]))
    def update(self, key: str, labels: dict[str, str], paths: tuple[str, ...]) -> None:
        expected: Error | None = None
        if key not in self.model:
            expected = NotFound
        elif "kind" in paths:
            expected = InvalidArgument
        info = Info(key, labels=labels)
        stored = self.check(expected, lambda: self.snapshotter.update(info, *paths))
        if expected is not None:
            return
        entry = self.model[key]
        new = {**entry.labels, "x": labels.get("x", "")} if paths else labels
        entry.labels = {k: v for k, v in new.items() if v}
        assert stored == self.engine.stat(key)

    @rule(key=KEYS)
    def look(self, key: str) -> None:
        expected = None if key in self.model else NotFound
        info = self.check(expected, lambda: self.snapshotter.stat(key))
        usage = self.check(expected, lambda: self.snapshotter.usage(key))
        if expected is not None:
            return
        assert info == self.engine.stat(key)
        assert usage == self.engine.usage(key)
        committed = info.kind == Kind.COMMITTED
        mounts = self.check(
            FailedPrecondition if committed else None, lambda: self.snapshotter.mounts(key)
        )
        assert committed or mounts == self.model[key].mounts

    @rule(kinds=st.sets(st.sampled_from(["active", "view", "committed"])), x=st.booleans())
    def find(self, kinds: set[str], x: bool) -> None:
        filters = [f"kind=={kind}" + (",labels.x" if x else "") for kind in sorted(kinds)]
        found = self.check(None, lambda: [info.name for info in self.snapshotter.walk(filters)])
        assert found == sorted(
            name
            for name, entry in self.model.items()
            if not kinds or (str(entry.kind).lower() in kinds and (not x or "x" in entry.labels))
        )

    @rule()
    def reopen(self) -> None:
        self.opened.close()
        self.open()

    @rule()
    def work(self) -> None:
        self.engine.sync()
        self.check(None, self.snapshotter.cleanup)
        assert not self.engine.pending()
        assert len(list((self.directory / "files").iterdir())) == len(self.model)

    @invariant()
    def same(self) -> None:
        infos = list(self.engine.walk())
        found = {i.name: (i.kind, i.parent, i.labels) for i in infos}
        assert found == {n: (e.kind, e.parent, e.labels) for n, e in self.model.items()}
        assert list(found) == sorted(found)
        assert self.engine.fsck() == []


class OverGrpc(InProcess):
    """Fewer: what is found here and not in this process is how calls and answers are written."""

    operations: ClassVar = 0
    examples: ClassVar = 80
    at_least: ClassVar = 3_000

    def reached(self) -> Snapshotter:
        return self.opened.enter_context(served(self.engine))


@pytest.mark.parametrize("machine", [InProcess, OverGrpc])
def test_random_operations(machine: type[InProcess], capsys: pytest.CaptureFixture[str]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=machine.examples,
            stateful_step_count=60,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    with capsys.disabled():
        print(f" {machine.__name__}: {machine.operations:,} operations ", end="")
    assert machine.operations >= machine.at_least
