"""Tables as Go's tabwriter makes them; expected texts are what ctr prints."""

from __future__ import annotations

import pytest

from lamina.cli.output import print_aligned, print_json, print_table, printable


def test_every_column_is_padded(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("KEY", "PARENT", "KIND"), [("a", "", "Active"), ("sha256:1", "b", "Committed")])
    assert capsys.readouterr().out == (
        "KEY      PARENT KIND      \na               Active    \nsha256:1 b      Committed \n"
    )


def test_min_width_and_padding(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B"), [("", "x")], min_width=4, padding=2)
    assert capsys.readouterr().out == "A   B   \n    x   \n"


def test_an_empty_table_has_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("REF", "SIZE"), [])
    assert capsys.readouterr().out == "REF SIZE \n"


def test_interrupted_columns_have_their_own_widths(capsys: pytest.CaptureFixture[str]) -> None:
    print_aligned([("long name", "1"), ("s", "2"), ("between",), ("t", "3")])
    assert capsys.readouterr().out == "long name 1\ns         2\nbetween\nt 3\n"


def test_control_characters_cannot_reach_the_terminal() -> None:
    assert printable("a\tb\n\x1b[2J") == "a\\tb\\n\\x1b[2J"
    assert printable("Größe 层") == "Größe 层"


def test_json_is_indented_by_four(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"Key": "é", "Labels": {}})
    assert capsys.readouterr().out == '{\n    "Key": "é",\n    "Labels": {}\n}\n'
