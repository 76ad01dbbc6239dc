"""Id mapping labels: which owner the root of a user namespace is on disk."""

from __future__ import annotations

from collections.abc import Mapping

from lamina.core.idmap import parse_idmap
from lamina.core.labels import GID_MAPPING, UID_MAPPING
from lamina.errors import InvalidArgument


def mapped_root(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the owner and the group on the host of root in the snapshot's user namespace.

    Returns:
        None without mapping labels. Where there is one of them, the other's id is 0.

    Raises:
        InvalidArgument: a label is no mapping, or maps no id 0.
    """
    if UID_MAPPING not in labels and GID_MAPPING not in labels:
        return None
    return _host_root(labels, UID_MAPPING), _host_root(labels, GID_MAPPING)


def _host_root(labels: Mapping[str, str], label: str) -> int:
    text = labels.get(label)
    if text is None:
        return 0
    for mapping in parse_idmap(text):
        if mapping.container == 0:
            return mapping.host
    raise InvalidArgument(f"use label {label}: it maps no container id 0", text)


def mapping_options(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return the mount options of the mapping labels that are there."""
    options = (("uidmap", labels.get(UID_MAPPING)), ("gidmap", labels.get(GID_MAPPING)))
    return tuple(f"{name}={text}" for name, text in options if text is not None)
