"""Which snapshots a filter of containerd's language matches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lamina.core.filters import FieldPath, label_field, parse
from lamina.core.snapshot import Info


def matcher(filters: Sequence[str]) -> Callable[[Info], bool]:
    """Return what tells whether a filter matches a snapshot.

    Raises:
        InvalidArgument: a filter does not parse.
    """
    matches = parse(filters)
    return lambda info: matches(lambda path: _field(info, path))


def _field(info: Info, path: FieldPath) -> str | None:
    """Return a field of a snapshot for the filter language; None where it has none."""
    match path:
        case ("name",):
            return info.name
        case ("parent",):
            return info.parent
        case ("kind",):
            return str(info.kind).lower()
        case ("labels", *rest):
            return label_field(info.labels, tuple(rest))
    return None
