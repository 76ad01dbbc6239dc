"""The engine against a model that fits on one page, driven by generated sequences of calls."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lamina.core.driver import Ability
from lamina.core.snapshot import Info, Kind
from lamina.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LaminaError,
    NotFound,
)
from lamina.snapshotters.engine import Engine
from tests.file_driver import FileDriver

KEYS = st.sampled_from(["", "a", "b", "c", "d", "e"])
LABELS = st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["", "1", "2"]))
Error = type[LaminaError]


@dataclass
class Entry:
    kind: Kind
    parent: str
    labels: dict[str, str]


class RebasingDriver(FileDriver):
    abilities = frozenset({Ability.REBASE})


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.engine = self.open()
        self.model: dict[str, Entry] = {}

    def open(self) -> Engine:
        root = Path(self.directory.name)
        return Engine("model", RebasingDriver(root), root, boot="one")

    def teardown(self) -> None:
        self.engine.close()
        self.directory.cleanup()

    def check(self, expected: Error | None, call: Callable[[], object]) -> bool:
        """Call; return whether it was to succeed."""
        if expected is None:
            call()
            return True
        with pytest.raises(LaminaError) as caught:
            call()
        assert type(caught.value) is expected
        return False

    @rule(kind=st.sampled_from([Kind.ACTIVE, Kind.VIEW]), key=KEYS, parent=KEYS, labels=LABELS)
    def create(self, kind: Kind, key: str, parent: str, labels: dict[str, str]) -> None:
        expected: Error | None = None
        if parent and parent not in self.model:
            expected = NotFound
        elif not key or (parent and self.model[parent].kind != Kind.COMMITTED):
            expected = InvalidArgument
        elif key in self.model:
            expected = AlreadyExists
        call = self.engine.prepare if kind == Kind.ACTIVE else self.engine.view
        if self.check(expected, lambda: call(key, parent, labels=labels)):
            self.model[key] = Entry(kind, parent, {k: v for k, v in labels.items() if v})

    @rule(name=KEYS, key=KEYS, parent=KEYS, labels=LABELS)
    def commit(self, name: str, key: str, parent: str, labels: dict[str, str]) -> None:
        expected = self.commit_error(name, key, parent)
        call = self.engine.commit
        if self.check(expected, lambda: call(name, key, labels=labels, parent=parent)):
            old = self.model.pop(key)
            kept = {k: v for k, v in labels.items() if v}
            self.model[name] = Entry(Kind.COMMITTED, old.parent or parent, kept)

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
        if self.check(expected, lambda: self.engine.remove(key)):
            del self.model[key]

    @rule(key=KEYS, labels=LABELS, paths=st.sampled_from([(), ("labels.x",), ("labels", "kind")]))
    def update(self, key: str, labels: dict[str, str], paths: tuple[str, ...]) -> None:
        expected: Error | None = None
        if key not in self.model:
            expected = NotFound
        elif "kind" in paths:
            expected = InvalidArgument
        if not self.check(expected, lambda: self.engine.update(info_of(key, labels), *paths)):
            return
        entry = self.model[key]
        new = {**entry.labels, "x": labels.get("x", "")} if paths else labels
        entry.labels = {k: v for k, v in new.items() if v}

    @rule()
    def reopen(self) -> None:
        self.engine.close()
        self.engine = self.open()

    @rule()
    def work(self) -> None:
        self.engine.sync()
        self.engine.cleanup()
        assert not self.engine.pending()
        directory = Path(self.directory.name, "files")
        assert len(list(directory.iterdir())) == len(self.model)

    @invariant()
    def same(self) -> None:
        found = {i.name: Entry(i.kind, i.parent, dict(i.labels)) for i in self.engine.walk()}
        assert found == self.model
        assert list(found) == sorted(found)
        assert self.engine.fsck() == []


def info_of(key: str, labels: dict[str, str]) -> Info:
    return Info(key, labels=labels)


Model.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestModel = Model.TestCase
