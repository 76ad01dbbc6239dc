"""Lists of paths with patterns, such as name the files that a program will read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lamina.errors import InvalidArgument


class Pattern(NamedTuple):
    """One line of a list.

    Attributes:
        text: as it was written.
        regex: what a path from the root on, without the first slash, has to match whole.
    """

    text: str
    regex: re.Pattern[str]

    def matches(self, path: str) -> bool:
        """Tell whether a path, without its first slash, is meant."""
        return self.regex.fullmatch(path) is not None


def read_patterns(lines: Iterable[str]) -> list[Pattern]:
    """Return the patterns of a list: one a line, empty lines and those that begin with # left out.

    `*` and `?` stand for characters other than `/`, `[a-z]` and `[!a-z]` for one, `**` between
    slashes for any number of directories. A directory means all that is below it. A backslash
    takes its meaning from what follows.

    Raises:
        InvalidArgument: a line leads out of the root, or has a range such as [z-a]; names it.
    """
    found = []
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text.strip() and not text.startswith("#"):
            found.append(Pattern(text, _compiled(text, number)))
    return found


def in_order(patterns: Sequence[Pattern], paths: Iterable[str]) -> list[list[str]]:
    """Return for each pattern the paths that it is the first to match, in their order."""
    found: list[list[str]] = [[] for _ in patterns]
    for path in paths:
        for number, pattern in enumerate(patterns):
            if pattern.matches(path):
                found[number].append(path)
                break
    return found


def _compiled(text: str, number: int) -> re.Pattern[str]:
    try:
        return re.compile(_regex(text, number), re.DOTALL)
    except re.error as error:
        hint = f"it has a {error.msg}; escape [ with a backslash where it means itself"
        raise InvalidArgument("read list of paths", f"line {number}: {text}", hint=hint) from error


def _regex(text: str, number: int) -> str:
    parts = [part for part in text.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise InvalidArgument("read list of paths", f"line {number}: {text}", hint="it has ..")
    regex = ""
    for index, part in enumerate(parts):
        if part == "**":
            regex += "(?:[^/]+/)*" if index < len(parts) - 1 else ".+"
        else:
            regex += _name(part) + ("/" if index < len(parts) - 1 else "(?:/.+)?")
    return regex or ".+"


def _name(part: str) -> str:
    """Translate what is between two slashes."""
    regex, at = "", 0
    while at < len(part):
        char = part[at]
        at += 1
        end = part.find("]", at + 1 + (part[at : at + 1] == "!")) if char == "[" else -1
        if char == "*":
            regex += "[^/]*"
        elif char == "?":
            regex += "[^/]"
        elif char == "\\" and at < len(part):
            regex += re.escape(part[at])
            at += 1
        elif end > 0:
            negated = part[at] == "!"
            inner = part[at + negated : end].replace("\\", "\\\\").replace("[", "\\[")
            inner = inner.replace("^", "\\^").replace("&&", "&\\&").replace("||", "|\\|")
            regex += f"(?!/)[{'^' if negated else ''}{inner}]"
            at = end + 1
        else:
            regex += re.escape(char)
    return regex
