# Messages of zc beside perftest's, in one boot of the test machine, in turns:
#   cargo xtask vm --timeout 300 -- sh -c "$(cat benches/messages_beside_perftest.sh)"
# Round trips in microseconds, medians: perftest's latency is half of one. One way in 10^6 bytes/s: perftest counts in 2^20, and writes or reads
# the same buffer again and again, with 128 requests under way or as many as it sends; here each message lies in memory of its own, its
# receiver has looked at both ends of it, and 64 are under way. Last come the medians of all rounds.
set -e
quietly() { # COMMAND: what a pair of perftest says at the side that measures
    $1 > /tmp/server 2>&1 &
    sleep 1
    $1 10.0.0.1
    wait
}
column() { # TITLE COLUMN: below the line with that title
    awk -v title="$1" -v column="$2" 'found { print $column; exit } index($0, title) { found = 1 }'
}
field() { # NAME: of an object in JSON
    sed "s/.*\"$1\":\([0-9.]*\).*/\1/"
}
latency() { # POLLING OPTIONS
    theirs=$(quietly "ib_send_lat -d rxe0 -x 1 -s 64 -n 3000 $2" | column t_typical 5)
    ours=$(zc perf latency --uri zc+rdma://10.0.0.1:0 --size 64 --duration-s 2 --polling "$1" --json | field p50)
    echo "$1 64 ib_send_lat $theirs $ours" |
        awk '{ printf "%-9s %8d B  %-11s %7.1f  zc %7.1f  ratio %.2f\n", $1, $2, $3, 2 * $4, $5 / 1000, $5 / 2000 / $4 }'
}
throughput() { # SIZE COUNT
    for test in ib_write_bw ib_read_bw; do
        theirs=$(quietly "$test -d rxe0 -x 1 -s $1 -n $2" | column 'BW average' 4)
        ours=$(zc perf throughput --uri zc+rdma://10.0.0.1:0 --size "$1" --duration-s 2 --json | field payload_bytes_per_s)
        echo "one-way $1 $test $theirs $ours" |
            awk '{ printf "%-9s %8d B  %-11s %7.1f  zc %7.1f  ratio %.2f\n", $1, $2, $3, $4 * 1.048576, $5 / 1e6, $5 / 1048576 / $4 }'
    done
}
for round in 1 2 3; do
    latency busy ''
    latency interrupt -e
    throughput 65536 2000
    throughput 1048576 150
done | tee /tmp/rounds
echo
for of in busy interrupt '65536 B  ib_write' '65536 B  ib_read' '1048576 B  ib_write' '1048576 B  ib_read'; do
    grep "$of" /tmp/rounds | sort -n -k 9 | sed -n 2p
done
