"""What setting up a place for a snapshotter needs, whatever is set up: `lamina.pool` and the like.

Where that is (`site`), sparse files as disks (`sparse`), the record of what was done so far
(`record`), the systemd unit that brings it back after a boot (`unit`), what would be lost with it
(`snapshots`), and steps that are the same for all (`steps`).
"""
