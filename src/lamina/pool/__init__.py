"""Thin pools for the devmapper snapshotter: set up, kept across reboots, looked after, torn down.

    ROOT/devmapper/NAME.json   what was set up (`record`); NAME is that of the pool's device
    ROOT/devmapper/lock        held by whoever changes something
    DIR/POOL.{data,metadata}   the sparse files of a pool on loop devices; DIR is ROOT/devmapper
                               if nothing else was asked for

There are two recipes: files on loop devices (`loop`), and a disk given to LVM (`lvm`). A record is
written before anything else is done and removed after everything else is undone, so that whoever
was killed in the middle is followed by someone who knows what to finish.
"""
