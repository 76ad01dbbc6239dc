"""The datasets of one snapshotter: their names, and what is asked of them by channel programs.

    DATASET                  mounted at the snapshotter's directory
    DATASET/ID               a snapshot's, with mountpoint=legacy: whoever uses it mounts it
    DATASET/ID@snapshot      what a Committed one was committed with; its children are clones of it
    DATASET/ID@fork-ID       what a fork is a clone of; it goes with the last that needs it

Each dataset has its number as its property `lamina:id`: another that is called by a number is left
alone. A Committed one's has `lamina:sealed` as well: so a snapshot that is missing can be told from
one that is not there yet.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from lamina.linux import zfs

SNAPSHOT = "snapshot"
FORK = "fork-"
SEALED = "lamina:sealed"
MARK = "lamina:id"
_ID = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)

_SEAL = f"""
local given = ...
local name = given["dataset"]
local snapshot = name .. "@{SNAPSHOT}"
if zfs.exists(snapshot) then
    zfs.sync.inherit(name, "{SEALED}")
    local code = zfs.sync.destroy(snapshot)
    if code ~= 0 then return code end
end
local code = zfs.sync.snapshot(snapshot)
if code ~= 0 then return code end
return zfs.sync.set_prop(name, "{SEALED}", "yes")
"""
_PROPERTY = """
local given = ...
if not zfs.exists(given["dataset"]) then return nil end
local value = zfs.get_prop(given["dataset"], given["property"])
return value
"""
_MARK = f"""
local given = ...
if not zfs.exists(given["dataset"]) then return nil end
local mark = zfs.get_prop(given["dataset"], "{MARK}")
return mark
"""
_CHILDREN = f"""
local given = ...
local lines = {{}}
for child in zfs.list.children(given["dataset"]) do
    local mark = zfs.get_prop(child, "{MARK}")
    lines[#lines + 1] = child .. "\\t" .. (mark or "")
end
return table.concat(lines, "\\n")
"""
_SNAPSHOTS = """
local given = ...
local name = given["dataset"]
local lines = {}
if not zfs.exists(name) then return "" end
for snapshot in zfs.list.snapshots(name) do
    lines[#lines + 1] = snapshot
    for clone in zfs.list.clones(snapshot) do lines[#lines] = lines[#lines] .. "\\t" .. clone end
end
return table.concat(lines, "\\n")
"""
_SURVEY = f"""
local given = ...
local lines = {{}}
for child in zfs.list.children(given["dataset"]) do
    local mark = zfs.get_prop(child, "{MARK}")
    local sealed = zfs.get_prop(child, "{SEALED}") and "sealed" or ""
    local line = child .. "\\t" .. (mark or "") .. "\\t" .. sealed
    for snapshot in zfs.list.snapshots(child) do
        local cloned = ""
        for _ in zfs.list.clones(snapshot) do cloned = "*" end
        line = line .. "\\t" .. snapshot .. cloned
    end
    lines[#lines + 1] = line
end
return table.concat(lines, "\\n")
"""


class Child(NamedTuple):
    """A dataset directly below the snapshotter's.

    Attributes:
        dataset: its name.
        id: of the snapshot whose it is; None where it is not ours.
        sealed: whether it has the mark of a Committed snapshot's.
        snapshots: the names of its snapshots, without its own.
        uncloned: those of them that nothing is a clone of.
    """

    dataset: str
    id: int | None
    sealed: bool
    snapshots: frozenset[str]
    uncloned: frozenset[str]


def property_of(name: str, property: str) -> str | int | None:
    """Return a property of a dataset or a snapshot; None without it, or without that."""
    return zfs.run(_PROPERTY, name, property=property)


class Datasets:
    """What there is below one dataset; `OSError` may rise from everything but names."""

    def __init__(self, parent: str) -> None:
        self.parent = parent

    def of(self, id: int) -> str:
        """Return the name of a snapshot's dataset."""
        return f"{self.parent}/{id}"

    def snapshot_of(self, id: int) -> str:
        """Return what the children of a Committed snapshot are clones of."""
        return f"{self.of(id)}@{SNAPSHOT}"

    def id_of(self, dataset: str, mark: str) -> int | None:
        """Return the number of the snapshot whose dataset it is, if it is one's."""
        name = dataset.removeprefix(f"{self.parent}/")
        return int(name) if name == mark and _ID.fullmatch(name) else None

    def is_there(self, id: int) -> bool:
        """Tell whether a snapshot has its dataset; another of that name does not count."""
        return zfs.run(_MARK, self.of(id)) == str(id)

    def seal(self, id: int) -> None:
        """Make `snapshot_of` anew, with all that was written until now, and the mark."""
        name = self.of(id)
        code = zfs.run(_SEAL, name, changes=True)
        if code:
            raise OSError(int(code), os.strerror(int(code)), name)

    def number(self, name: str, property: str) -> int | None:
        """Return a property in bytes, as of what is on disk; None where there is no dataset."""
        value = property_of(name, property)
        return None if value is None else int(value)

    def ids(self) -> list[int]:
        """List the snapshots that have a dataset."""
        listed = str(zfs.run(_CHILDREN, self.parent) or "")
        ids = (self.id_of(*line.split("\t")) for line in listed.splitlines())
        return [id for id in ids if id is not None]

    def clones(self, id: int) -> dict[str, list[str]]:
        """Return the clones of each of the snapshots that one dataset has, the oldest first."""
        lines = str(zfs.run(_SNAPSHOTS, self.of(id)) or "").splitlines()
        return {name: clones for name, *clones in (line.split("\t") for line in lines)}

    def survey(self) -> list[Child]:
        """Return everything directly below, as of one moment."""
        lines = str(zfs.run(_SURVEY, self.parent) or "").splitlines()
        return [self._child(*line.split("\t")) for line in sorted(lines)]

    def _child(self, dataset: str, mark: str, sealed: str, *snapshots: str) -> Child:
        names = [snapshot.partition("@")[2] for snapshot in snapshots]
        return Child(
            dataset,
            self.id_of(dataset, mark),
            sealed=bool(sealed),
            snapshots=frozenset(name.rstrip("*") for name in names),
            uncloned=frozenset(name for name in names if not name.endswith("*")),
        )
