"""containerd's configuration file: what is read, what is passed over, what is refused."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from lamina.config import Config, load
from lamina.config.section import fill, key_faults
from lamina.errors import ConfigError, NotFound, SnapshotterSkipped
from lamina.snapshotters import find
from lamina.snapshotters.plugin import SnapshotterConfig, SnapshotterPlugin

OVERLAYFS = "io.containerd.snapshotter.v1.overlayfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig(SnapshotterConfig):
    """Has one key of every type."""

    fast: bool = False
    layers: int = 7
    mount_options: tuple[str, ...] = ("loop",)

    def problems(self) -> list[str]:
        return ["layers: must be positive"] if self.layers < 1 else []


def never(*_: object) -> Any:
    raise AssertionError("the driver is not to be loaded")


SAMPLE = SnapshotterPlugin(id="sample", config=SampleConfig, load=never)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def problems_of(file: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(file) in str(caught.value)
    return caught.value.problems


def test_no_file_means_defaults(file: Path) -> None:
    assert load(file, missing_ok=True) == Config()
    assert Config().snapshotter(SAMPLE) == SampleConfig()


def test_a_file_that_was_named_must_exist(file: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.toml"):
        load(file)


@pytest.mark.parametrize("version", [2, 3])
def test_versions_two_and_three_read_alike(file: Path, version: int) -> None:
    file.write_text(
        f"""
        version = {version}
        root = "/srv/lamina"
        [plugins."{OVERLAYFS}"]
          root_path = "/srv/overlay"
          upperdir_label = true
          mount_options = ["volatile"]
        """
    )
    config = load(file)
    section = cast("Any", config.snapshotter(find("overlayfs")))
    assert config.root == Path("/srv/lamina")
    assert section.root_path == "/srv/overlay"
    assert section.upperdir_label is True
    assert section.mount_options == ("volatile",)
    assert section.sync_remove is False


def test_what_only_containerd_uses_is_passed_over(file: Path) -> None:
    file.write_text(
        """
        version = 3
        state = "/run/containerd"
        oom_score = -999
        required_plugins = ["io.containerd.grpc.v1.cri"]
        [grpc]
          address = "/run/containerd/containerd.sock"
        [plugins."io.containerd.cri.v1.images"]
          snapshotter = "overlayfs"
        [proxy_plugins.stargz]
          type = "snapshot"
          address = "/run/stargz.sock"
        [timeouts]
          "io.containerd.timeout.bolt.open" = "0s"
        """
    )
    assert find("overlayfs").uri not in load(file).sections


@pytest.mark.skipif(not shutil.which("containerd"), reason="containerd is not installed")
def test_containerds_own_default_file_is_accepted(file: Path) -> None:
    command = ("containerd", "config", "default")
    file.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    assert load(file).root == Path("/var/lib/containerd")


def test_all_faults_are_reported_together(file: Path) -> None:
    file.write_text(
        f"""
        version = 3
        rot = "/srv"
        root = "relative"
        disabled_plugins = "zfs"
        [plugins.native]
        [plugins."io.containerd.snapshotter.v1.overlayf"]
        [plugins."{OVERLAYFS}"]
          sync_remov = true
          upperdir_label = "yes"
          mount_options = ["index=off", 1]
          root_path = 1
        """
    )
    faults = problems_of(file)
    beginnings = (
        "rot: unknown key",
        "disabled_plugins: expected a list of strings, got 'zfs'",
        "root: expected an absolute path, got 'relative'",
        'plugins.native: a name of version 1; write plugins."io.containerd.snapshotter.v1.native"',
        'plugins."io.containerd.snapshotter.v1.overlayf": no such snapshotter; did you mean',
        f'plugins."{OVERLAYFS}".sync_remov: unknown key; known are mount_options',
        f"plugins.\"{OVERLAYFS}\".upperdir_label: expected true or false, got 'yes'",
        f'plugins."{OVERLAYFS}".mount_options: expected a list of strings, got',
        f'plugins."{OVERLAYFS}".root_path: expected a string, got 1',
    )
    assert len(faults) == len(beginnings)
    for beginning in beginnings:
        assert any(fault.startswith(beginning) for fault in faults), (beginning, faults)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("version = 1", "version: expected one of 2, 3, 4, got 1"),
        ("version = true", "version: expected a whole number, got True"),
        ("[plugins]", "version: missing, which means 1; write version = 3"),
        ("plugins = 3", "plugins: expected a table, got 3"),
        (f'version = 2\n[plugins]\n"{OVERLAYFS}" = 1', f'plugins."{OVERLAYFS}": expected a table'),
        ("version = ", "not TOML: Invalid value (at end of document)"),
        ("imports = ['missing.toml']", "missing.toml: cannot be read: No such file or directory"),
        ("imports = 'a.toml'", "imports: expected a list of strings, got 'a.toml'"),
    ],
)
def test_faults(file: Path, text: str, fault: str) -> None:
    file.write_text(text)
    assert any(fault in problem for problem in problems_of(file))


def test_a_file_that_is_not_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    assert problems_of(file)[0].startswith("not TOML")


def test_a_file_that_is_too_deep(file: Path) -> None:
    file.write_text("a = " + "[" * 5000)
    assert problems_of(file) == ("has too many values inside one another",)


def test_a_file_that_never_ends() -> None:
    assert problems_of(Path("/dev/zero")) == ("has more than 4 MiB",)


def test_imports_replace_key_by_key(file: Path) -> None:
    file.write_text(
        f"""
        version = 2
        imports = ["conf.d/*.toml", "{file.parent}/last.toml"]
        disabled_plugins = ["io.containerd.snapshotter.v1.zfs"]
        [plugins."{OVERLAYFS}"]
          upperdir_label = true
          root_path = "/first"
        """
    )
    (file.parent / "conf.d").mkdir()
    imported = file.parent / "conf.d/a.toml"
    imported.write_text(f'version = 2\n[plugins."{OVERLAYFS}"]\nroot_path = "/second"')
    last = file.parent / "last.toml"
    last.write_text(
        'version = 2\nroot = "/r"\nimports = ["config.toml"]\ndisabled_plugins = ["another"]'
    )
    config = load(file)
    assert config.root == Path("/r")
    assert config.sections[OVERLAYFS] == {"upperdir_label": True, "root_path": "/second"}
    assert config.disabled == {"io.containerd.snapshotter.v1.zfs", "another"}


def test_faults_of_imported_files_name_the_file(file: Path) -> None:
    file.write_text('version = 2\nimports = ["b.toml"]\nbad = 1')
    (file.parent / "b.toml").write_text(f'version = 2\n[plugins."{OVERLAYFS}"]\nworse = 2')
    first, second = problems_of(file)
    assert first.startswith("bad: unknown key")
    assert second.startswith(f'{file.parent / "b.toml"}: plugins."{OVERLAYFS}".worse: unknown key')


def test_a_disabled_plugin_is_skipped() -> None:
    config = Config(path=Path("/etc/c.toml"), disabled=frozenset({SAMPLE.uri}))
    with pytest.raises(SnapshotterSkipped, match=r"disabled by /etc/c.toml.*disabled_plugins"):
        config.snapshotter(SAMPLE)


def test_every_type_of_key_is_filled_and_checked() -> None:
    table = {"fast": True, "layers": 0, "mount_options": []}
    assert key_faults(SampleConfig, table) == []
    assert fill(SampleConfig, table) == SampleConfig(fast=True, layers=0, mount_options=())
    wrong = {"fast": 1, "layers": True, "mount_options": "loop", "root_path": None}
    assert len(key_faults(SampleConfig, wrong)) == len(wrong)


def test_third_parties_sections_are_checked_when_they_are_used() -> None:
    config = Config(path=Path("/c.toml"), sections={SAMPLE.uri: {"fsat": True, "layers": "0"}})
    with pytest.raises(ConfigError) as caught:
        config.snapshotter(SAMPLE)
    assert len(caught.value.problems) == 2
    config = Config(path=Path("/c.toml"), sections={SAMPLE.uri: {"layers": 0}})
    with pytest.raises(ConfigError, match="layers: must be positive"):
        config.snapshotter(SAMPLE)
