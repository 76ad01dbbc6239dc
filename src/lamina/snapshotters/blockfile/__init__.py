"""The blockfile snapshotter: one file per snapshot with a whole filesystem in it."""
