"""The records of pools, the units that activate them, and what their programs print."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lamina.errors import Aborted, DataLoss, FormatError, InvalidArgument, NotFound
from lamina.pool.record import Record, Records
from lamina.pool.unit import pool_unit, pool_unit_text
from lamina.tools.lvm import parse_report
from lamina.tools.wipefs import Signature, parse_signatures

RECORD = Record(device="devpool", kind="loop", data_bytes=5, directory="/d")
LVM = Record(device="vg-thin", kind="lvm", group="vg", pool="thin", disk="/dev/sdx")


def test_record_comes_back(tmp_path: Path) -> None:
    records = Records(tmp_path)
    with records.locked():
        records.write(RECORD)
        records.write(LVM)
    assert Records(tmp_path).all() == [RECORD, LVM]
    assert records.get("devpool") == RECORD
    assert records.get("other") is None
    assert records.find("thin") == records.find("vg-thin") == LVM
    with pytest.raises(InvalidArgument, match="devpool, vg-thin"):
        records.find(None)
    with pytest.raises(NotFound, match="there are: devpool, vg-thin"):
        records.find("none")
    records.remove("devpool")
    records.remove("devpool")
    assert records.find(None) == LVM


def test_root_without_pools(tmp_path: Path) -> None:
    assert Records(tmp_path / "none").all() == []
    with pytest.raises(NotFound, match="lamina devmapper setup"):
        Records(tmp_path / "none").find(None)
    assert not (tmp_path / "none").exists()


def test_one_at_a_time(tmp_path: Path) -> None:
    records = Records(tmp_path)
    with records.locked(), pytest.raises(Aborted, match="another"), Records(tmp_path).locked():
        pass
    with records.locked():
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"device": "a"}', '{"device": "a", "x": 1}'])
def test_damaged_record_is_told_of(tmp_path: Path, text: str) -> None:
    records = Records(tmp_path)
    with records.locked():
        (records.directory / "a.json").write_text(text)
    with pytest.raises(DataLoss, match=r"a\.json"):
        records.all()


def test_killed_in_the_middle_of_writing(tmp_path: Path) -> None:
    records = Records(tmp_path)
    with records.locked():
        records.write(RECORD)
        (records.directory / ".devpool.json").write_text("{")
    assert records.all() == [RECORD]


def test_unit_is_written_enabled_and_removed(tmp_path: Path) -> None:
    unit = pool_unit("devpool", root=tmp_path)
    assert not unit.possible()
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert unit.possible()
    text = pool_unit_text("devpool", ["/usr/bin/lamina"], places=[tmp_path])
    assert unit.install(text)
    assert not unit.install(text)
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants" / unit.name
    assert wants.is_symlink()
    assert unit.install(text + "# changed\n")
    assert unit.remove()
    assert not unit.remove()
    assert not wants.is_symlink()
    assert not unit.path.exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    command = ["/bin/true", "--root", "/a b/$HOME/50%", "activate"]
    place = Path("/a b/50%")
    path = tmp_path / pool_unit("a+b=c", root=tmp_path).name
    path.write_text(pool_unit_text("a+b=c", command, places=[place, Path("/")]))
    argv = ("systemd-analyze", "verify", "--man=no", path)
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert path.name not in done.stderr, done.stderr
    text = path.read_text()
    assert 'RequiresMountsFor="/a b/50%%" /\n' in text
    assert 'ExecStart=/bin/true --root "/a b/$$HOME/50%%" activate\n' in text


def test_wipefs_output() -> None:
    output = b"""{
   "signatures": [
      {"device":"loop0", "offset":"0x438", "type":"ext4", "uuid":"1-2", "label":"data"},
      {"device":"loop0", "offset":"0x200", "type":"gpt", "uuid":"3-4", "label":null},
      {"device":"loop0", "offset":"0xfffe00", "type":"gpt", "uuid":"3-4", "label":null}
   ]
}"""
    assert parse_signatures(output) == [Signature("ext4", "data"), Signature("gpt", "")]
    assert str(Signature("ext4", "data")) == "ext4 'data'"
    assert parse_signatures(b"") == []
    with pytest.raises(FormatError):
        parse_signatures(b"loop0 ext4")


def test_lvm_report() -> None:
    output = b"""
  {
      "report": [
          {
              "vg": [
                  {"vg_name":"vg0", "vg_free":"1073741824"}
              ]
          }
      ]
  }
"""
    assert parse_report(output, "vg") == [{"vg_name": "vg0", "vg_free": "1073741824"}]
    for bad in (b"", b"vg0", b'{"report": [{"lv": []}]}', b'{"report": [{"vg": [1]}]}'):
        with pytest.raises(FormatError):
            parse_report(bad, "vg")
