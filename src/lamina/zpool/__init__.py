"""A pool for the zfs snapshotter on a sparse file: set up, kept across reboots, torn down.

    ROOT/zfs/pool.json   what was set up (`record`)
    ROOT/zfs/lock        held by whoever changes something
    DIR/POOL.zpool       the sparse file; DIR is ROOT/zfs if nothing else was asked for

The pool's own dataset is mounted at the snapshotter's directory, and has the property `lamina:root`
by which it is known as this root's. A record is written before anything else is done and removed
after everything else is undone: whoever was killed in the middle is followed by someone who knows
what to finish.
"""
