# One-sided operations of zc beside perftest's, in one boot of the test machine, in turns:
#   cargo xtask vm -- sh -c "$(cat benches/remote_beside_perftest.sh)"
# Medians in microseconds. What perftest calls the latency of a write is half of a round trip of two writes, each of which the other side
# sees in its memory; here a write takes until it was acknowledged, which is a round trip, so it is compared with twice that.
set -e
perftest() { # TEST OPTIONS: the column t_typical
    "$1" -d rxe0 -x 1 -n 3000 $2 > /tmp/server 2>&1 &
    sleep 1
    "$1" -d rxe0 -x 1 -n 3000 $2 10.0.0.1 | awk 'found { print $5; exit } /t_typical/ { found = 1 }'
    wait
}
ours() { # OPERATION
    zc perf remote --operation "$1" --uri zc+rdma://10.0.0.1:0 --size "$2" --duration-s 2 --polling "$3" --json |
        sed 's/.*"p50":\([0-9]*\).*/\1/' | awk '{ print $1 / 1000 }'
}
for round in 1 2 3; do
    for polling in busy adaptive; do
        for one in "read ib_read_lat 64 1" "write ib_write_lat 64 2" "add ib_atomic_lat 8 1"; do
            set -- $one
            options="-s $3"
            [ "$1" = add ] && options="-A FETCH_AND_ADD"
            theirs=$(perftest "$2" "$options")
            echo "$1 $polling $theirs $(ours "$1" "$3" "$polling") $4" |
                awk '{ printf "%-6s %-9s perftest %7.1f  zc %7.1f  ratio %.2f\n", $1, $2, $3 * $5, $4, $4 / ($3 * $5) }'
        done
    done
done
