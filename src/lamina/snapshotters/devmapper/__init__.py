"""Snapshots as thin devices of a device-mapper pool."""
