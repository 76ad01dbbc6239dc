"""The engine that is every snapshotter, and a driver for each kind of storage."""
