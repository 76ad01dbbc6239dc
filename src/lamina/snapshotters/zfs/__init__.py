"""The zfs snapshotter: a ZFS dataset per snapshot, cloned from its parent's snapshot."""
