"""Files that overlaybd has beside its layers: what a device is made of, and what to read early.

`device_config` is `config.v1.json`, `trace` what was read of a device while somebody recorded it,
`places` finds that on a device, and `priorities` is a list of paths in place of a trace.
`annotations` tell layers from others. Described in `docs/formats/overlaybd.md`.
"""
