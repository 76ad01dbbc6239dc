"""The text of the units that bring back at boot what was set up."""

from __future__ import annotations

import shlex
from pathlib import Path

from lamina.provision.unit import unit_text


def lines(text: str) -> list[tuple[str, str]]:
    return [
        (key, value)
        for key, found, value in (line.partition("=") for line in text.splitlines())
        if found
    ]


def test_text() -> None:
    command = ("/usr/bin/lamina", "--root", "/a b%", "zfs", "activate")
    text = unit_text(
        "ZFS at 100%",
        command,
        stop=("/usr/bin/lamina", "zfs", "deactivate"),
        writer="lamina zfs setup",
        places=[Path("/var/lib/lamina"), Path("/a b")],
        module="zfs",
    )
    found = lines(text)
    names = [name for name, _ in found]
    assert names.index("ExecStartPre") < names.index("ExecStart")
    values = dict(found)
    assert values["ExecStartPre"] == "-modprobe zfs"  # what is built in is no module
    assert tuple(shlex.split(values["ExecStart"].replace("%%", "%"))) == command
    assert values["ExecStop"] == "/usr/bin/lamina zfs deactivate"
    assert values["RequiresMountsFor"] == '/var/lib/lamina "/a b"'
    assert values["Description"] == "ZFS at 100%%"
    assert "containerd.service" in values["Before"]


def test_what_is_not_asked_for_is_not_there() -> None:
    text = unit_text("x", ("true",), writer="lamina devmapper setup", places=[Path("/")])
    assert not {"ExecStartPre", "ExecStop"} & dict(lines(text)).keys()
