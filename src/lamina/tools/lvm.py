"""LVM: physical volumes, volume groups and thin pools; lvm(8), lvmthin(7), lvmreport(7)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

from lamina.errors import FormatError
from lamina.tools.run import run

log = logging.getLogger(__name__)

_SECONDS = 300.0
_REPAIR_SECONDS = 3600.0

Row = dict[str, str]


class VolumeGroup(NamedTuple):
    """A volume group.

    Attributes:
        name: its name.
        tags: words that whoever made it has put on it.
        extent_bytes: what it allocates at least, and multiples of.
        free_bytes: what no volume has.
        volumes: how many volumes it has, hidden ones left out.
    """

    name: str
    tags: frozenset[str]
    extent_bytes: int
    free_bytes: int
    volumes: int


def find_group(name: str) -> VolumeGroup | None:
    """Return a volume group; None where there is none of that name."""
    fields = "vg_name,vg_tags,vg_extent_size,vg_free,lv_count"
    for row in _report("vgs", "vg", fields):
        if row["vg_name"] == name:
            return VolumeGroup(
                name=name,
                tags=frozenset(filter(None, row["vg_tags"].split(","))),
                extent_bytes=int(row["vg_extent_size"]),
                free_bytes=int(row["vg_free"]),
                volumes=int(row["lv_count"]),
            )
    return None


def physical_volumes() -> dict[str, str]:
    """Return the volume group of each physical volume by its path; "" for none yet."""
    return {row["pv_name"]: row["vg_name"] for row in _report("pvs", "pv", "pv_name,vg_name")}


def has_volume(group: str, name: str) -> bool:
    """Tell whether there is a logical volume of that name."""
    rows = _report("lvs", "lv", "vg_name,lv_name")
    return any(row["vg_name"] == group and row["lv_name"] == name for row in rows)


def make_physical_volume(device: Path) -> None:
    """Make a device a physical volume; what was on it must be wiped."""
    _lvm("pvcreate", "--yes", str(device))


def remove_physical_volume(device: str) -> None:
    """Make a physical volume without group an empty device."""
    _lvm("pvremove", "--yes", device)


def make_group(name: str, device: Path, *, tag: str) -> None:
    """Make a volume group of one physical volume."""
    _lvm("vgcreate", "--yes", "--addtag", tag, name, str(device))


def remove_group(name: str) -> None:
    """Remove a volume group that has no volumes."""
    _lvm("vgremove", "--yes", name)


def make_thin_pool(
    group: str, name: str, *, data_bytes: int, metadata_bytes: int, block_bytes: int, profile: str
) -> None:
    """Make a thin pool, and activate it; blocks are not zeroed, discards are passed down.

    Args:
        group: the volume group.
        name: the pool's name in it.
        data_bytes: its size, rounded up to the group's extents.
        metadata_bytes: of its metadata, rounded up likewise. LVM keeps as much once more for a
            repair.
        block_bytes: the size of its blocks.
        profile: of /etc/lvm/profile, which says when it is extended.
    """
    _lvm(
        *("lvcreate", "--yes", "--type", "thin-pool", "--name", name),
        *("--size", f"{data_bytes}b", "--poolmetadatasize", f"{metadata_bytes}b"),
        *("--chunksize", f"{block_bytes}b", "--zero", "n", "--discards", "passdown"),
        *("--metadataprofile", profile, group),
    )


def extend_thin_pool(
    group: str, name: str, *, data_bytes: int | None, metadata_bytes: int | None
) -> None:
    """Make a thin pool larger; each size, rounded up to extents, is more than it has."""
    if metadata_bytes is not None:
        _lvm("lvextend", "--poolmetadatasize", f"{metadata_bytes}b", f"{group}/{name}")
    if data_bytes is not None:
        _lvm("lvextend", "--size", f"{data_bytes}b", f"{group}/{name}")


def remove_volume(group: str, name: str) -> None:
    """Remove a logical volume with all that is on it."""
    _lvm("lvremove", "--yes", "--force", f"{group}/{name}")


def activate(group: str, name: str) -> None:
    """Activate a logical volume; one that is active stays so."""
    _lvm("lvchange", "--yes", "--activate", "y", f"{group}/{name}")


def deactivate(group: str, name: str) -> None:
    """Deactivate a logical volume that nobody uses."""
    _lvm("lvchange", "--activate", "n", f"{group}/{name}")


def repair_thin_pool(group: str, name: str) -> None:
    """Repair an inactive pool's metadata into the spare; the old stays as a volume `NAME_metaN`."""
    _lvm("lvconvert", "--yes", "--repair", f"{group}/{name}", seconds=_REPAIR_SECONDS)


def _lvm(*words: str, seconds: float = _SECONDS) -> None:
    done = run(["lvm", *words], timeout=seconds)
    for line in filter(None, map(str.strip, done.stderr.splitlines())):
        log.debug("lvm: %s", line)


def _report(command: str, object: str, fields: str) -> list[Row]:
    options = ("--reportformat", "json", "--units", "b", "--nosuffix", "--options", fields)
    done = run(["lvm", command, *options], timeout=_SECONDS)
    return parse_report(done.stdout, object)


def parse_report(output: bytes, object: str) -> list[Row]:
    """Parse a report in JSON; `object` is `pv`, `vg` or `lv`.

    Raises:
        FormatError: it is something else.
    """
    try:
        rows = [row for part in json.loads(output)["report"] for row in part[object]]
        return [{key: str(value) for key, value in row.items()} for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = f"JSON with a report of {object}s"
        raise FormatError("lvm's report", 0, expected=expected, got=repr(output[:80])) from error
