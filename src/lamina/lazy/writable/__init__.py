"""Writable devices: what is written lies above a device that is only read, or above nothing.

`directory` makes them, `device` reads and writes one, `sector_map` knows which sectors were
written, `lower` is what lies below, and `sealing` makes a layer of what was written. The gate
`writable` shows them to the kernel. Described in `docs/internals/lazy-worker.md`.
"""
