"""Fuzzing of what reads lazy images, by hand and guided by coverage: no part of the tests.

Atheris is no dependency of the project; put it beside it, then name a target:

    .venv/bin/pip install atheris
    .venv/bin/python -m tests.fuzz erofs CORPUS -max_total_time=180

Targets are `footer`, `toc`, `blob`, `erofs`, `rafs5`, `rafs6`, `rafs-blob`, `zfile`, `lsmt`,
`warp`, `gzip-index`, `access-trace`, `device`, `table`, `map`, `record` and `tar`. CORPUS is a
directory, made where missing, that gets seeds of the project's own writers and every input that
reaches something new; what follows is libFuzzer's. `-runs=0` only runs what is there already, and a
file instead of the directory only that input: so is a finding tried again.

Findings are written beside CORPUS, as `CORPUS-crash-...`. An input is one where something comes out
that no docstring tells of, where it takes more than ten seconds, or more than 1 GiB of address
space. Checksums that would keep changes from the code behind them are made anew for each input. A
finding that is mended gets a test of its own in `tests/unit`.
"""
