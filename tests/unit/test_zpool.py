"""What is recorded of a pool for the zfs snapshotter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.errors import Aborted, DataLoss, InvalidArgument, NotFound
from lamina.provision.unit import BootUnit
from lamina.zpool import manage
from lamina.zpool.manage import Site
from lamina.zpool.record import Record, Records

RECORD = Record(pool="lamina", file="/f/lamina.zpool", size=1 << 30, mountpoint="/m")


def test_record(tmp_path: Path) -> None:
    records = Records(tmp_path / "root")
    assert records.get() is None
    with pytest.raises(NotFound, match="lamina zfs setup"):
        records.find()
    with records.locked():
        records.write(RECORD)
        records.write(replace(RECORD, state="ready"))
        with pytest.raises(Aborted, match="at it"), records.locked():
            pass
    assert records.find() == replace(RECORD, state="ready")
    records.remove()
    records.remove()
    assert records.get() is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"pool": "x", "colour": "red"}'])
def test_damaged_record(tmp_path: Path, content: bytes) -> None:
    records = Records(tmp_path)
    with records.locked():
        (records.directory / "pool.json").write_bytes(content)
    with pytest.raises(DataLoss, match="backup"):
        records.get()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    root = tmp_path / "unused"
    return Site(
        records=Records(root),
        root=root,
        program=("lamina",),
        unit=lambda name: BootUnit(name, root=tmp_path),
        say=lambda text: pytest.fail(text),
    )


@pytest.mark.parametrize(
    "verb",
    [manage.activate, manage.deactivate, lambda site: manage.teardown(site, force=True)],
)
def test_nothing_is_made_where_nothing_was_set_up(
    verb: Callable[[Site], object], site: Site
) -> None:
    with pytest.raises(NotFound, match="lamina zfs setup"):
        verb(site)
    assert not site.root.exists()


def test_path_of_two_lines_is_refused(site: Site) -> None:
    with pytest.raises(InvalidArgument, match=r"two\\nlines.*control character"):
        manage.setup(site, replace(RECORD, file="/f/two\nlines"))
    with pytest.raises(InvalidArgument, match="control character"):
        manage.setup(site._replace(root=site.root / "\n"), RECORD)
    assert not site.root.exists()
