r"""containerd's filter language, as snapshots, images and content are listed with it.

    filter    = selector *("," selector)             all of them must hold
    selector  = fieldpath [operator value]           without operator: the field is present
    fieldpath = field *("." field)
    field     = 1*(A-Z / a-z / 0-9 / "_") / quoted
    operator  = "==" / "!=" / "~="
    value     = quoted / 1*(printable, but no space and no ",")
    quoted    = Go string literal in "..."; as the value of ~= also in /.../ or |...|

White space between tokens is skipped. A bare value cannot start with one of `. , = ! ~ / | "`,
because the tokeniser takes those for something else.

`!=` is plain inequality with an absent field counted as "", so `labels.x!=1` also matches what has
no label x. `~=` searches, it is not anchored. Its pattern is meant for RE2; `re` stands in for it,
so a hostile pattern can take exponential time: offer it to people, not to the network.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lamina.errors import InvalidArgument

log = logging.getLogger(__name__)

FieldPath = tuple[str, ...]
Fields = Callable[[FieldPath], str | None]
"""The value of a field of one object, None where the object has no such field."""
Filter = Callable[[Fields], bool]

_OPERATORS = ("==", "!=", "~=")
_FIELD = re.compile(r"[A-Za-z0-9_]+", re.ASCII)
_SIMPLE_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\",
}  # fmt: skip
_NUMERIC_ESCAPE = re.compile(
    r"(?P<octal>[0-7]{3})|x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8})"
)


def parse(filters: Sequence[str]) -> Filter:
    """Return a predicate that holds where at least one of the filters does.

    No filters, or an empty one among them, match everything.

    Raises:
        InvalidArgument: a filter does not parse; the text names the position.
    """
    alternatives = [_Parser(text).selectors() for text in filters]
    if not alternatives or not all(alternatives):
        return lambda fields: True
    return lambda fields: any(all(s.holds(fields) for s in group) for group in alternatives)


def label_field(labels: Mapping[str, str], path: FieldPath) -> str | None:
    """Return the label that `labels.A.B` means: the elements after the first, joined by dots."""
    return labels.get(".".join(path))


@dataclass(frozen=True, slots=True)
class _Selector:
    path: FieldPath
    operator: str = ""
    value: str = ""
    pattern: re.Pattern[str] | None = None

    def holds(self, fields: Fields) -> bool:
        found = fields(self.path)
        if self.operator == "!=":
            return (found or "") != self.value
        if self.operator == "~=":
            return self.pattern is not None and self.pattern.search(found or "") is not None
        return found is not None and (not self.operator or found == self.value)


class _Parser:
    """Recursive descent over one filter string; `at` is the index of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def selectors(self) -> list[_Selector]:
        if not self.text:
            return []
        found = [self._selector()]
        while self._peek():
            if self._peek() != ",":
                raise self._error('expected "," or the end')
            self.at += 1
            found.append(self._selector())
        return found

    def _selector(self) -> _Selector:
        path = self._fieldpath()
        if self._peek() in {"", ","}:
            return _Selector(path)
        operator = self._operator()
        value = self._value(operator)
        pattern = _compiled(value) if operator == "~=" else None
        return _Selector(path, operator, value, pattern)

    def _fieldpath(self) -> FieldPath:
        path = [self._field()]
        while self._peek() == ".":
            self.at += 1
            path.append(self._field())
        return tuple(path)

    def _field(self) -> str:
        if self._peek() == '"':
            return self._quoted()
        match = _FIELD.match(self.text, self.at)
        if match is None:
            raise self._error("expected a field name or a double-quoted string")
        self.at = match.end()
        return match[0]

    def _operator(self) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] in "=!~":
            self.at += 1
        operator = self.text[start : self.at]
        if operator not in _OPERATORS:
            self.at = start
            raise self._error("expected one of ==, != and ~=")
        return operator

    def _value(self, operator: str) -> str:
        first = self._peek()
        if first == '"' or (first in {"/", "|"} and operator == "~="):
            return self._quoted()
        if first in {"/", "|"}:
            raise self._error(f"{first}...{first} quotes only what ~= looks for; use double quotes")
        start = self.at
        if first not in {"", *".,=!~"}:
            while self.at < len(self.text) and _in_bare_value(self.text[self.at]):
                self.at += 1
        if self.at == start:
            raise self._error("expected a value; quote one that starts like this")
        return self.text[start : self.at]

    def _quoted(self) -> str:
        start = self.at
        quote = self.text[start]
        self.at += 1
        parts: list[str] = []
        while self.at < len(self.text) and self.text[self.at] != "\n":
            character = self.text[self.at]
            self.at += 1
            if character == quote:
                return "".join(parts)
            parts.append(self._escape(quote) if character == "\\" else character)
        self.at = start
        raise self._error("this quoted string does not end")

    def _escape(self, quote: str) -> str:
        """Decode what follows a backslash, by the rules of Go's string literals."""
        following = self.text[self.at : self.at + 1]
        if following and following in _SIMPLE_ESCAPES.keys() | {quote}:
            self.at += 1
            return _SIMPLE_ESCAPES.get(following, following)
        match = _NUMERIC_ESCAPE.match(self.text, self.at)
        if match is None:
            raise self._error("no such escape sequence; write \\\\ for a backslash")
        number = int(match[match.lastgroup or 0], 8 if match.lastgroup == "octal" else 16)
        limit = 0xFF if match.lastgroup == "octal" else 0x10FFFF
        if number > limit or 0xD800 <= number <= 0xDFFF:
            raise self._error("this escape sequence is no character")
        self.at = match.end()
        return chr(number)

    def _peek(self) -> str:
        """Skip white space and return the next character, "" at the end."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def _error(self, problem: str) -> InvalidArgument:
        return InvalidArgument(f"parse filter: at character {self.at + 1}, {problem}", self.text)


def _in_bare_value(character: str) -> bool:
    return character != "," and character.isprintable() and not character.isspace()


def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except re.error as error:
        log.warning("filter pattern does not compile and matches nothing: %s: %s", pattern, error)
        return None
