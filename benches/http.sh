#!/usr/bin/env bash
# The HTTP API under load, client on the same machine: the real server on the embedded ledger and on PostgreSQL (fsync on),
# beside an empty handler with the same body and token, so that the ledger's cost shows as a ratio.
# Usage: benches/http.sh [SECONDS of each load, 0 for none] [MINUTES of the soak, 0 for none]
# Exit 1 if an answer was no success, or orders are missing from the ledger.
# PROFILE=bench builds with less optimisation in less time; BIN=DIR takes programs that are built; LEDGER_BENCH_PORT moves the ports.
# Needs Debian's wrk, jq, curl and postgresql-15.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-10}
soak=${2:-0}
profile=${PROFILE:-release}
port=${LEDGER_BENCH_PORT:-$((20000 + RANDOM % 10000))}
connections=64
bin=${BIN:-$PWD/target/release}
work=$(mktemp -d)
log=$work/server.log

[ -n "${BIN:-}" ] || cargo build --profile "$profile" --locked -p ledger -p ledger-benches --bins

pids=() database=
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null && wait "$pid" 2> /dev/null || true; done
    [ -z "$database" ] || (cd / && $as "$programs/pg_ctl" -D "$work/postgres/data" -m immediate stop > /dev/null)
    rm -rf "$work"
}
trap cleanup EXIT
fail() { printf 'FAILED %s\n' "$*" >&2; exit 1; }

# serve DIR [postgres://…]: a server without rate limits, ready to answer at $url.
serve() {
    port=$((port + 1)) dir=$1
    url=http://127.0.0.1:$port
    DATABASE_URL=${2:-} RUST_LOG=warn "$bin/ledger" --dir "$dir" serve --dev --listen "127.0.0.1:$port" \
        --rate-limit 0 --rate-limit-service 0 > "$log" 2>&1 &
    server=$! asked=$!
    pids+=("$server")
    for _ in $(seq 100); do
        if curl -sf "$url/ready" > /dev/null; then
            buyer=$(token buyer@example.org buyer) auditor=$(token auditor@example.org auditor)
            operator=$(token operator@example.org operator) service=$(token service:finance service)
            return
        fi
        sleep 0.1
    done
    fail "the server did not start: $(cat "$log")"
}
token() { DATABASE_URL='' "$bin/ledger" --dir "$dir" token --sub "$1" --role "$2"; }
stop() { kill "$server" && wait "$server" || fail "the server ended with $?: $(cat "$log")"; }
orders() { curl -sf -H "Authorization: Bearer $operator" "$url/metrics" | awk '$1 == "marketplace_orders_total" { n = $2 } END { print n + 0 }'; }

# Processor time so far of the server that is asked and of its database, in hundredths of a second. It says what a request costs
# when other work shares the machine.
cpu() {
    local pid all=("$asked")
    [ -z "$database" ] || all+=($(pgrep -P "$(head -1 "$work/postgres/data/postmaster.pid")"))
    for pid in "${all[@]}"; do cat "/proc/$pid/stat" 2> /dev/null || true; done | awk '{ n += $14 + $15 } END { print n }'
}

# load NAME SCRIPT SECONDS CONNECTIONS URL ARGUMENTS…: prints a line of the table; answers and rate are left in $answers and $rate.
load() {
    local name=$1 script=$2 time=$3 connections=$4 url=$5 p50 p99 bad before
    shift 5
    before=$(cpu)
    (cd benches/http && wrk -t1 -c"$connections" -d"${time}s" --timeout 10s -s "$script" "$url" -- "$@") > "$work/wrk" || fail "wrk: $(cat "$work/wrk")"
    read -r answers rate p50 p99 bad < <(sed -n 's/^figures //p' "$work/wrk")
    printf '%-28s %7s/s  p50 %6s ms  p99 %7s ms  %4s us of CPU each  %s\n' "$name" "$rate" "$p50" "$p99" \
        "$(awk -v n="$answers" -v ticks=$(($(cpu) - before)) -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.0f", ticks * 1e6 / hz / n }')" \
        "$(awk -v r="$rate" -v b="${baseline:-0}" 'BEGIN { if (b > 0) printf "%.1f %% of the empty handler", 100 * r / b }')"
    [ "$bad" = 0 ] || fail "$name: $bad answers were no success: $(cat "$work/wrk")"
}

# checkouts NAME: every answer must be an order in the ledger.
checkouts() {
    local before
    before=$(orders)
    load "$1" checkout.lua "$seconds" $connections "$url" "$buyer" buyer@example.org "run-$RANDOM$RANDOM"
    local made=$(($(orders) - before))
    # wrk ends with requests on their way: they are orders too.
    [ "$made" -ge "$answers" ] && [ "$made" -le $((answers + connections)) ] || fail "$1: $answers answers, $made orders"
}

# some_orders: the ids of 500 orders from a place in the chain that differs each time, in $work/ids.
some_orders() {
    local made
    made=$(orders)
    curl -sf -H "Authorization: Bearer $auditor" \
        "$url/audit/events?type=order.created&limit=500&after=0:$(((RANDOM * 32768 + RANDOM) % (made > 600 ? made - 550 : 1)))" \
        | jq -r '.events[].payload.order_id' > "$work/ids"
    [ -s "$work/ids" ] || fail "no order is listed"
}

reads() {
    some_orders
    load "$1" order.lua "$seconds" $connections "$url" "$buyer" "$work/ids"
}

lives() {
    local kid
    kid=$(curl -sf -H "Authorization: Bearer $operator" "$url/admin/signers" | jq -r '[.signers[] | select(.purpose == "finance")][0].signer_kid')
    printf '%s:\n' "$1"
    BUYER_TOKEN=$buyer SERVICE_TOKEN=$service "$bin/http-lives" "$url" "$dir/keys/dev-finance.pem" "$kid" 300 | sed 's/^/    /'
}

weight() {
    # Closed connections are noticed a moment later.
    sleep 0.5
    printf '%4s s  %8s KiB resident  %4s files  %3s threads\n' "$1" "$(awk '/^VmRSS/ { print $2 }' "/proc/$server/status")" \
        "$(ls "/proc/$server/fd" | wc -l)" "$(awk '/^Threads/ { print $2 }' "/proc/$server/status")"
}

echo "$(nproc) cores, $connections connections, $seconds s each, profile $profile"
if [ "$seconds" -gt 0 ]; then
    serve "$work/embedded"
    baseline_url=http://127.0.0.1:$((port + 1000))
    "$bin/http-baseline" "${baseline_url#http://}" "$dir/keys/dev-token.key" > "$work/baseline.log" &
    pids+=("$!")
    sleep 0.5
    baseline= asked=${pids[-1]}
    load "empty handler" checkout.lua "$seconds" $connections "$baseline_url" "$buyer" buyer@example.org run
    baseline=$rate asked=$server
    lives "an order's life, embedded, alone"
    checkouts "POST /checkout, embedded"
    reads "GET /order/{id}, embedded"
    stop

    programs=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
    mkdir "$work/postgres"
    # PostgreSQL refuses to run as root.
    as=
    if [ "$(id -u)" = 0 ]; then
        chmod 755 "$work"
        chown postgres "$work/postgres"
        as="runuser -u postgres --"
    fi
    (cd "$work/postgres" && $as "$programs/initdb" -D data -U postgres -A trust -E UTF8 > initdb.log \
        && $as "$programs/pg_ctl" -D "$work/postgres/data" -l "$work/postgres/log" -w \
            -o "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories= -c shared_buffers=512MB" start > /dev/null)
    database=postgres://postgres@127.0.0.1:$port/postgres
    "$bin/ledger" --dir "$work/keys" --database "$database" migrate > /dev/null
    serve "$work/keys" "$database"
    lives "an order's life, PostgreSQL, alone"
    checkouts "POST /checkout, PostgreSQL"
    reads "GET /order/{id}, PostgreSQL"
    stop
fi

if [ "$soak" -gt 0 ]; then
    # Half of the connections write, half read, in rounds of ten seconds, on a ledger that grows.
    serve "$work/soak"
    load "soak, warming up" checkout.lua 5 $connections "$url" "$buyer" buyer@example.org warm
    weight 0
    for round in $(seq $((soak * 6))); do
        some_orders
        (cd benches/http && wrk -t1 -c32 -d10s --timeout 10s -s order.lua "$url" -- "$buyer" "$work/ids") > "$work/reads" &
        reading=$!
        load "soak, POST /checkout beside reads" checkout.lua 10 32 "$url" "$buyer" buyer@example.org "soak-$round" > "$work/line"
        wait "$reading"
        [ "$(sed -n 's/^figures //p' "$work/reads" | cut -d' ' -f5)" = 0 ] || fail "soak: reads failed: $(cat "$work/reads")"
        printf '%s  %s checkouts/s, %s reads/s\n' "$(weight $((round * 10)))" "$rate" "$(sed -n 's/^figures //p' "$work/reads" | cut -d' ' -f2)"
    done
    stop
fi
