"""What may be wrong with a SQLite file itself, and with rows that cannot be read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lamina.meta.database import Database

_OF_AN_INDEX = ("missing from index", "wrong # of entries in index", "non-unique entry in index")


class JsonTable(NamedTuple):
    """A table with JSON objects in it: the column that identifies a row, and those columns."""

    key: str
    columns: tuple[str, ...]


class BadRow(NamedTuple):
    """A row with a column that holds no JSON object."""

    table: str
    key: str
    column: str


def unreadable(column: str) -> str:
    """Return an SQL condition: the column holds no JSON object."""
    return f"CASE WHEN json_valid({column}) THEN json_type({column}) <> 'object' ELSE 1 END"


def integrity(connection: sqlite3.Connection) -> list[str]:
    """Return what SQLite says of the file: nothing where it is sound."""
    found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    return [text for text in found if text != "ok"]


def is_of_an_index(text: str) -> bool:
    """Tell whether what `integrity` says is about an index only, which can be made anew."""
    return any(words in text for words in _OF_AN_INDEX)


def reindex(database: Database) -> None:
    """Make all indexes anew from the rows."""
    with database.write() as connection:
        connection.execute("REINDEX")


def dangling(connection: sqlite3.Connection) -> list[tuple[str, int | None]]:
    """Return table and rowid (None where it has none) of rows that refer to one that is gone."""
    return [(row[0], row[1]) for row in connection.execute("PRAGMA foreign_key_check")]


def bad_rows(connection: sqlite3.Connection, tables: Mapping[str, JsonTable]) -> Iterator[BadRow]:
    """Yield the rows whose JSON cannot be read."""
    for table, (key, columns) in tables.items():
        for column in columns:
            query = f"SELECT {key} FROM {table} WHERE {unreadable(column)}"
            for row in connection.execute(query).fetchall():
                yield BadRow(table, str(row[0]), column)
