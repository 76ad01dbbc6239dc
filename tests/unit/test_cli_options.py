"""Options that may stand before a verb or behind it, and be set in the environment."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from lamina.cli.app import App, Command, Group


@click.group(cls=Group)
def group() -> None:
    pass


@group.command(cls=Command)
def verb() -> None:
    pass


@pytest.mark.parametrize(
    ("words", "environment", "root"),
    [
        (["verb"], None, None),
        (["verb"], "/env", "/env"),
        (["verb"], "", None),
        (["--root", "/before", "verb"], "/env", "/before"),
        (["verb", "--root", "/behind"], "/env", "/behind"),
        (["--root", "/before", "verb", "--root", "/behind"], "/env", "/behind"),
        (["--root", "/before", "verb", "--root", "/behind"], None, "/behind"),
    ],
)
def test_what_is_typed_last_counts(
    words: list[str], environment: str | None, root: str | None
) -> None:
    app = App()
    result = CliRunner().invoke(group, words, obj=app, env={"LAMINA_ROOT": environment})
    assert result.exit_code == 0, result.output
    assert (None if app.root_option is None else str(app.root_option)) == root


def test_an_empty_value_is_refused() -> None:
    result = CliRunner().invoke(group, ["verb", "--root", ""], obj=App())
    assert result.exit_code == 2
    assert "it is empty" in result.output
