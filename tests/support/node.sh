#!/bin/sh
# The first process of a pretended host, in its own namespaces: sshd, and nothing of this machine's configuration.
# Usage: node.sh DIRECTORY NAME, which holds hosts, ssh_config, host_key, authorized_keys.
set -e
directory=$1 name=$2
hostname "$name"
mount --bind "$directory/hosts" /etc/hosts
mount --bind "$directory/ssh_config" /etc/ssh/ssh_config
mount -t tmpfs tmpfs /run
mkdir /run/sshd
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
address="$(awk -v name="$name" '$2 == name { print $1 }' "$directory/hosts")"
ip address add "$address/24" dev eth0
ip link set eth0 up
# In the foreground, as process 1: when it dies the kernel kills every process of this host.
exec /usr/sbin/sshd -D -e -f /dev/null -o "ListenAddress=$address" -o "HostKey=$directory/host_key" \
    -o "AuthorizedKeysFile=$directory/authorized_keys" -o PermitRootLogin=prohibit-password -o StrictModes=no \
    -o UsePAM=no -o PidFile=none
