"""A btrfs for the btrfs snapshotter: set up, kept across reboots, torn down.

    ROOT/btrfs/setup.json   what was set up (`record`)
    ROOT/btrfs/lock         held by whoever changes something
    DIR/btrfs.img           the sparse file that it is in; DIR is ROOT/btrfs if nothing else was
                            asked for
    DIR/btrfs.img.new       while it is made

It is mounted, through a loop device, at the snapshotter's directory. The record is written before
anything else is done and removed after everything else is undone, so that whoever was killed in
the middle is followed by someone who knows what to finish.
"""
