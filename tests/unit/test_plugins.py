"""Finding snapshotters, and what is said of those that do not work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lamina import plugins
from lamina.config import Config
from lamina.errors import FailedPrecondition, Internal, NotFound
from lamina.plugins import PluginStatus
from lamina.snapshotters import DRIVERS
from lamina.snapshotters.entrypoints import entry_points

GOOD = """
from lamina.core.driver import Ability
from lamina.errors import SnapshotterSkipped
from lamina.snapshotters.plugin import SnapshotterConfig, SnapshotterPlugin

class Driver:
    abilities = frozenset({Ability.REBASE})
    def close(self):
        pass

def load(config, directory):
    (directory / "made").mkdir()
    return Driver()

def refuse(config, directory):
    raise SnapshotterSkipped("picky", reason="no such luck", fix="buy some")

PLUGIN = SnapshotterPlugin(id="good", config=SnapshotterConfig, load=load)
PICKY = SnapshotterPlugin(id="picky", config=SnapshotterConfig, load=refuse)

def pass_(config, directory):
    (directory / "tried").mkdir()

def fail(config, directory):
    raise SnapshotterSkipped("wanting", reason="checked, and found wanting", fix="none")

QUICK = SnapshotterPlugin(id="quick", config=SnapshotterConfig, load=refuse, check=pass_)
WANTING = SnapshotterPlugin(id="wanting", config=SnapshotterConfig, load=load, check=fail)
NATIVE = SnapshotterPlugin(id="native", config=SnapshotterConfig, load=refuse)
"""
ENTRIES = """
[console_scripts]
good = third_good:main

[lamina.snapshotters]
# a comment
good = third_good:PLUGIN
picky=third_good:PICKY
native = third_good:NATIVE
misnamed = third_good:PLUGIN
quick = third_good:QUICK
wanting = third_good:WANTING
absent = third_absent:PLUGIN
broken = third_broken:PLUGIN
[other]
bad = x:y
"""

CHECKED = ("quick", "wanting")
"""Those whose `check` says something else than their `load`, as none should."""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on sys.path with an installed distribution that brings snapshotters."""
    site = tmp_path / "site"
    metadata = site / "third-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "entry_points.txt").write_text(ENTRIES)
    (site / "third_good.py").write_text(GOOD)
    (site / "third_broken.py").write_text("raise SystemExit('not today')")
    monkeypatch.syspath_prepend(site)
    for name in ("third_good", "third_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return site


def statuses(root: Path, config: Config | None = None) -> dict[str, PluginStatus]:
    found = plugins.plugins(root, config or Config())
    return {status.id: status for status in found}


def test_the_twelve_are_always_listed(root_dir: Path) -> None:
    assert list(statuses(root_dir)) == sorted(DRIVERS)
    assert len(DRIVERS) == 12


def test_an_unknown_name(root_dir: Path) -> None:
    with pytest.raises(NotFound, match="overlayfz"):
        plugins.load("overlayfz", root_dir, Config())


def test_native_works_anywhere_and_nothing_is_left_behind(root_dir: Path) -> None:
    status = statuses(root_dir)["native"]
    assert (status.status, status.error) == ("ok", None)
    assert status.exports == {"root": str(root_dir / "io.containerd.snapshotter.v1.native")}
    assert list(root_dir.parent.iterdir()) == []


def test_the_status_is_the_same_without_capabilities(third_party: Path, root_dir: Path) -> None:
    whole = [status for status in statuses(root_dir).values() if status.id not in CHECKED]
    brief = plugins.plugins(root_dir, Config(), capabilities=False)
    assert [
        (status.id, status.status, str(status.error))
        for status in brief
        if status.id not in CHECKED
    ] == [(status.id, status.status, str(status.error)) for status in whole]
    assert list(root_dir.parent.iterdir()) == [third_party]


def test_a_plugin_that_is_checked_is_not_loaded(root_dir: Path, third_party: Path) -> None:
    found = {each.id: each for each in plugins.plugins(root_dir, Config(), capabilities=False)}
    assert (found["quick"].status, found["quick"].capabilities) == ("ok", ())
    assert "checked, and found wanting" in str(found["wanting"].error)
    loaded = statuses(root_dir)
    assert "no such luck" in str(loaded["quick"].error)


def test_a_root_that_cannot_be_made_is_an_error_with_a_fix() -> None:
    status = statuses(Path("/proc/nowhere"))["native"]
    assert status.status == "error"
    assert "/proc" in str(status.error)


def test_a_disabled_snapshotter_is_skipped(root_dir: Path) -> None:
    config = Config(path=Path("/c"), disabled=frozenset({"io.containerd.snapshotter.v1.native"}))
    assert statuses(root_dir, config)["native"].status == "skip"


def test_containerds_own_directory_is_refused(root_dir: Path) -> None:
    directory = root_dir / "io.containerd.snapshotter.v1.native"
    (directory / "snapshots/1").mkdir(parents=True)
    (directory / "metadata.db").touch()
    with pytest.raises(FailedPrecondition, match="containerd keeps its snapshots there"):
        plugins.load("native", root_dir, Config())
    status = statuses(root_dir)["native"]
    assert (status.status, status.exports) == ("error", {"root": str(directory)})
    assert (directory / "snapshots/1").is_dir()


def test_third_parties_snapshotters(third_party: Path, root_dir: Path) -> None:
    found = statuses(root_dir)
    assert list(found)[12:] == ["absent", "broken", "good", "misnamed", "picky", "quick", "wanting"]
    assert (found["good"].status, found["good"].capabilities) == ("ok", ("rebase",))
    assert found["native"].status == "ok"
    assert found["picky"].status == "skip"
    assert "no such luck" in str(found["picky"].error)
    assert list(root_dir.parent.iterdir()) == [third_party]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "No module named 'third_absent'"),
        ("broken", "SystemExit: not today"),
        ("misnamed", "no SnapshotterPlugin of that id"),
    ],
)
def test_a_broken_third_party_is_an_error(
    third_party: Path, root_dir: Path, name: str, reason: str
) -> None:
    status = statuses(root_dir)[name]
    assert status.status == "error"
    assert isinstance(status.error, Internal)
    assert reason in str(status.error)
    assert status.error.hint


def test_what_is_first_on_the_path_wins(third_party: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    for name, entry in (("third-0.9", "old = x:y"), ("other-1", "good = x:y\nnew = x:y")):
        (later / f"{name}.dist-info").mkdir(parents=True)
        content = f"[lamina.snapshotters]\n{entry}\n"
        (later / f"{name}.dist-info/entry_points.txt").write_text(content)
    found = entry_points([str(third_party), str(tmp_path / "missing"), str(later)])
    assert found["good"] == "third_good:PLUGIN"
    assert found["new"] == "x:y"
    assert "old" not in found
    assert "bad" not in found


def lamina(*arguments: str, root: Path) -> str:
    command = [str(Path(sys.executable).with_name("lamina")), "--root", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_list_has_ctrs_columns(root_dir: Path) -> None:
    first, *rows = lamina("plugins", "ls", root=root_dir).splitlines()
    assert first.split() == ["TYPE", "ID", "PLATFORMS", "STATUS"]
    assert first.index("ID") == len("io.containerd.snapshotter.v1") + 4
    assert [row.split()[1] for row in rows] == plugins.known()


def test_quiet_list_and_filters(root_dir: Path) -> None:
    assert lamina("plugins", "list", "-q", "id~=^(native|aufs)$", root=root_dir) == "aufs\nnative\n"
    assert "aufs" in lamina("plugin", "ls", "-q", "status==skip", root=root_dir).split()
    assert lamina("plugins", "ls", "-q", "status==none", root=root_dir) == ""


def test_details_have_the_reason_and_the_fix(root_dir: Path) -> None:
    text = lamina("plugins", "ls", "-d", "id==aufs", "id==native", root=root_dir)
    aufs, native = re.split(r"^ +\n", text, flags=re.MULTILINE)
    assert "Exports:\n" in native.replace(" ", "")
    assert "Error:" not in native
    assert "Code:        FailedPrecondition" in aufs
    assert "Message:     load snapshotter aufs: " in aufs
    assert "Fix:         " in aufs


def test_json(root_dir: Path) -> None:
    (aufs,) = json.loads(lamina("plugins", "ls", "--json", "id==aufs", root=root_dir))
    assert aufs["Status"] == "skip"
    assert aufs["Error"]["Fix"]
