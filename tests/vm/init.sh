#!/bin/sh
# The first process of the virtual machine (see machine.py): makes a root that can be written to,
# runs the command it was given, writes its exit code, and powers off.
#
# The kernel passes on what the host has said: in User-mode Linux `lamina_shared`, the one host
# directory that the guest may change; in QEMU `lamina_kernel`, where script/zfs-kernel has put what
# belongs to the kernel.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

version=$(uname -r)
if [ -n "$lamina_kernel" ]; then
    modules=$lamina_kernel/tree/usr/lib/modules/$version
else
    modules=/usr/lib/uml/modules/$version
fi

# The host's files are the lower layer of an overlay, so that nothing the guest does reaches them.
first_stage() {
    mount -t proc proc /proc
    [ -z "$lamina_kernel" ] || mount -t devtmpfs dev /dev
    mount -t tmpfs tmpfs /run
    mkdir -p /run/lib/modules /run/upper /run/work /run/root
    ln -s "$modules" /run/lib/modules/
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
    ln -sfn "$modules" "/lib/modules/$version"
    if [ -n "$lamina_kernel" ]; then
        mount -t virtiofs shared /run/shared
        cp -as "$lamina_kernel"/tree/usr/sbin/. /usr/sbin
        cp -as "$lamina_kernel"/tree/usr/lib/*-linux-gnu/. /usr/lib/*-linux-gnu
        modprobe -a loop zfs
    else
        mount -t hostfs -o "$lamina_shared" shared /run/shared
        modprobe -a loop dm-mod dm-thin-pool
    fi
    busybox ip link set lo up
    sh /run/shared/command
    echo $? >/run/shared/status.new
    sync /run/shared/status.new
    mv /run/shared/status.new /run/shared/status
    busybox poweroff -f
}

if [ "$1" = second ]; then second_stage; else first_stage; fi
