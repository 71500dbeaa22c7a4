#!/usr/bin/dash
# The first process of the machine: brings up its devices, runs the command, says how it ended, switches off.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin HOME=/root TMPDIR=/tmp

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run

while read -r module; do
    insmod "/zc/modules/$module.ko" || echo "zc: no module $module"
done </zc/modules/order

# The ports have the numbers in which the host lists them.
until [ -e /dev/vport0p4 ]; do sleep 0.05; done
exec 5>/dev/vport0p3

fail() {
    echo "zc: $1"
    echo "fail $1" >&5
    poweroff -f
}

ip link set lo up
if grep -q rdma_rxe /zc/modules/order; then
    if [ -e /zc/number ]; then
        # Another machine is at the other end of the wire.
        read -r number </zc/number
        card=eth0
    else
        # One device on one end of the pair serves all processes; the other end only keeps the carrier.
        number=1
        card=veth0
        ip link add veth0 type veth peer name veth1 || fail "no veth pair"
        ip link set veth1 mtu 9000
        ip link set veth1 up
    fi
    ip link set $card mtu 9000 || fail "no $card"
    ip addr add "10.0.0.$number/24" dev $card
    ip link set $card up
    rdma link add rxe0 type rxe netdev $card || fail "no rxe device"
    tries=0
    until rdma link show rxe0/1 | grep -q 'state ACTIVE' &&
        grep -qs "ffff:0a00:000$number" /sys/class/infiniband/rxe0/ports/1/gids/*; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "rxe0 has no address after 10 s"
        sleep 0.1
    done
fi

ulimit -l unlimited
ulimit -n 20000
mkfifo /run/stdout /run/stderr
if [ -e /zc/number ]; then
    # What the command asks of the host. The pipe is open for writing here, too, so that it has no end. The answers come by a port
    # of their own, a line for each.
    until [ -e /dev/vport0p5 ]; do sleep 0.05; done
    ln -s /dev/vport0p5 /run/answers
    mkfifo /run/host
    cat <>/run/host >&5 &
fi
# Through pipes, because a port can be opened once only, and programs open /dev/stderr as they please.
cat /run/stdout >/dev/vport0p1 5>&- &
out=$!
cat /run/stderr >/dev/vport0p2 5>&- &
err=$!
echo "up" >&5
cd /root || fail "no home"
dash /zc/command </dev/null >/run/stdout 2>/run/stderr 5>&-
code=$?

# What the command left behind would keep its output open.
for dir in /proc/[0-9]*; do
    case ${dir#/proc/} in
    1 | $out | $err) ;;
    *) kill -9 "${dir#/proc/}" 2>/dev/null ;;
    esac
done
wait $out $err
if [ -e /zc/bring-back ]; then
    (cd /out && find . | cpio -o -H newc) >/dev/vport0p4 || fail "cannot hand out /out"
fi
echo "exit $code" >&5
poweroff -f
