#!/bin/sh
# The first process of the virtual machine (see uml.py): makes a root that can be written to, runs
# the command it was given, writes its exit code, and powers off.
#
# The kernel passes `lamina_shared` on, the one host directory that the guest may change.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The host's files are the lower layer of an overlay, so that nothing the guest does reaches them.
first_stage() {
    mount -t proc proc /proc
    mount -t tmpfs tmpfs /run
    mkdir -p /run/lib/modules /run/upper /run/work /run/root
    ln -s "/usr/lib/uml/modules/$(uname -r)" /run/lib/modules/
    modprobe -d /run overlay
    mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work root /run/root
    mount --move /dev /run/root/dev
    mount --move /proc /run/root/proc
    cd /run/root || exit 1
    mount --move . /
    exec chroot . "$0" second
}

second_stage() {
    mount -t sysfs sysfs /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs tmpfs /run
    mkdir -p /dev/pts /dev/shm /run/lock /run/shared /run/tmp "/lib/modules"
    mount -t devpts devpts /dev/pts
    mount -t tmpfs tmpfs /dev/shm
    mount -t hostfs -o "$lamina_shared" shared /run/shared
    ln -sfn "/usr/lib/uml/modules/$(uname -r)" "/lib/modules/$(uname -r)"
    modprobe -a loop dm-mod dm-thin-pool
    busybox ip link set lo up
    sh /run/shared/command
    echo $? >/run/shared/status.new
    sync /run/shared/status.new
    mv /run/shared/status.new /run/shared/status
    busybox poweroff -f
}

if [ "$1" = second ]; then second_stage; else first_stage; fi
