"""Layers whose bytes come when they are read: unit tables, verified caches, range sources, gates.

Import from the modules: `unit` and `table` (what is where), `layer` (its directory), `cache`
(`LayerCache`), `policy`, `sources`; `gates`, `launch` (`LazyWorker`).
`docs/internals/lazy-cache.md` describes the files, `docs/internals/lazy-worker.md` the processes.
"""
