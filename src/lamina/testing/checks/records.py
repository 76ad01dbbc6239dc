"""What is recorded of snapshots: labels, times, usage, and finding them again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lamina.core.snapshot import Snapshotter
from lamina.errors import InvalidArgument
from lamina.mount import temp_mount
from lamina.testing.checks.layers import commit_layer, write


class RecordChecks:
    """Labels, usage, filters and keys."""

    def test_update(self, snapshotter: Snapshotter, work: Path) -> None:
        """Labels change by field path on snapshots of every kind; nothing else ever does."""
        before = datetime.now(UTC)
        commit_layer(snapshotter, work, [write("foo", "foo")], "c1")
        commit_layer(snapshotter, work, [write("foo", "bar")], "c2", "c1")
        snapshotter.prepare("a1", "c2")
        snapshotter.prepare("a2")
        snapshotter.view("v1", "c2")
        snapshotter.view("v2")
        for key in ("c1", "c2", "a1", "a2", "v1", "v2"):
            _update(snapshotter, key, before)

    def test_walk(self, snapshotter: Snapshotter, work: Path) -> None:
        """Filters choose by kind, name, parent and labels."""
        commit_layer(snapshotter, work, [], "c1")
        commit_layer(snapshotter, work, [], "c2", "c1")
        snapshotter.prepare("a1", "c1", labels={"l1": "v1", "containerd.io/x": "y"})
        snapshotter.prepare("a2", "c2", labels={"l1": "v2"})
        snapshotter.view("v1", "c1", labels={"l2": "v1"})
        snapshotter.view("v2")
        cases = {
            ("kind==active",): "a1 a2",
            ("kind==view",): "v1 v2",
            ("kind==committed",): "c1 c2",
            ("name==a1", "name==c2"): "a1 c2",
            ("parent==c1",): "a1 c2 v1",
            ('parent!=""',): "a1 a2 c2 v1",
            ('parent==""',): "c1 v2",
            ("labels.l1",): "a1 a2",
            ("labels.l1==v1",): "a1",
            ('labels."containerd.io/x"==y',): "a1",
            ("kind==active,parent==c2",): "a2",
            ("labels.l2!=v1,parent==c1",): "a1 c2",
            ("name~=^[av]1$",): "a1 v1",
            (): "a1 a2 c1 c2 v1 v2",
            ("kind==none", ""): "a1 a2 c1 c2 v1 v2",
        }
        for filters, names in cases.items():
            assert " ".join(info.name for info in snapshotter.walk(filters)) == names, filters
        with pytest.raises(InvalidArgument):
            list(snapshotter.walk(["kind=="]))

    def test_stat_in_walk(self, snapshotter: Snapshotter, work: Path) -> None:
        """Everything may be called while a walk is open."""
        commit_layer(snapshotter, work, [write("foo", "x")], "base")
        snapshotter.prepare("active", "base")
        seen = []
        for info in snapshotter.walk():
            assert snapshotter.stat(info.name) == info
            seen.append(info.name)
            snapshotter.view(f"0-of-{info.name}", "base")
        assert seen == ["active", "base"]

    def test_usage(self, snapshotter: Snapshotter, work: Path) -> None:
        """An Active snapshot is measured, a Committed one has been; a View costs nothing."""
        with temp_mount(snapshotter.prepare("active"), dir=work) as root:
            before = snapshotter.usage("active")
            (root / "file").write_bytes(b"x" * (1 << 20))
            grown = snapshotter.usage("active")
            assert grown.inodes == before.inodes + 1
            assert grown.size >= before.size + (1 << 20)
        snapshotter.commit("committed", "active")
        assert snapshotter.usage("committed") == grown
        snapshotter.view("view", "committed")
        assert (snapshotter.usage("view").inodes, snapshotter.usage("view").size) == (0, 0)

    def test_labels(self, snapshotter: Snapshotter, work: Path) -> None:
        """Labels are what the last call gave: nothing is inherited, nothing empty is kept."""
        snapshotter.prepare("active", labels={"a": "1", "empty": ""})
        shown = snapshotter.stat("active").labels
        assert shown["a"] == "1"
        assert "empty" not in shown
        created = snapshotter.stat("active").created
        snapshotter.commit("committed", "active", labels={"b": "2"})
        found = snapshotter.stat("committed")
        assert "a" not in found.labels
        assert found.labels["b"] == "2"
        assert found.created == found.updated > created
        snapshotter.prepare("child", "committed")
        assert not {"a", "b"} & snapshotter.stat("child").labels.keys()

    def test_odd_keys(self, snapshotter: Snapshotter, work: Path) -> None:
        """Keys are opaque and come back in the order of their bytes."""
        keys = [
            "../../etc",
            "/",
            "a b",
            "k8s.io/1/extract-1 sha256:0",
            "n\0ul",
            "\ue000",
            "\U0001f600",
        ]
        for key in reversed(keys):
            snapshotter.prepare(key)
        assert [info.name for info in snapshotter.walk()] == keys == sorted(keys, key=str.encode)
        with pytest.raises(InvalidArgument):
            snapshotter.prepare("lone \ud800 surrogate")
        for key in keys:
            snapshotter.remove(key)


def _update(snapshotter: Snapshotter, key: str, before: datetime) -> None:
    info = snapshotter.stat(key)
    shown = dict(info.labels)
    assert before - timedelta(seconds=1) <= info.created == info.updated <= datetime.now(UTC)

    labels = {"l1": "v1", "l2": "v2", "l3": "v3"}
    changed = snapshotter.update(info._replace(labels=labels, parent="doesnotexist"))
    assert changed == info._replace(labels={**labels, **shown}, updated=changed.updated)
    assert changed.updated > info.updated
    assert snapshotter.stat(key) == changed

    some = changed._replace(labels={"l1": "updated", "l4": "ignored"})
    changed = snapshotter.update(some, "labels.l1", "labels.l2")
    assert changed.labels == {"l1": "updated", "l3": "v3", **shown}

    changed = snapshotter.update(changed._replace(labels={"l4": "v4"}), "labels")
    assert changed.labels == {"l4": "v4", **shown}

    with pytest.raises(InvalidArgument, match='cannot update "parent" field'):
        snapshotter.update(changed._replace(labels={"l1": "x"}), "labels.l1", "parent")
    assert snapshotter.stat(key) == changed
