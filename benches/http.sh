#!/usr/bin/env bash
# The HTTP API under load, client on the same machine: the real server on the embedded ledger and on PostgreSQL (fsync on),
# beside an empty handler with the same body and token, so that the ledger's cost shows as a ratio.
# Usage: benches/http.sh [SECONDS of each load] [MINUTES of the soak, 0 for none]
# Exit 1 if an answer was no success, or orders are missing from the ledger.
# PROFILE=bench builds with less optimisation in less time; LEDGER_BENCH_PORT moves the ports.
# Needs Debian's wrk, jq, curl and postgresql-15.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-10}
soak=${2:-0}
profile=${PROFILE:-release}
port=${LEDGER_BENCH_PORT:-$((20000 + RANDOM % 10000))}
connections=64
bin=$PWD/target/release
work=$(mktemp -d)
log=$work/server.log

cargo build --profile "$profile" --locked -p ledger -p ledger-benches --bins

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
    server=$!
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

# load NAME SCRIPT SECONDS CONNECTIONS URL ARGUMENTS…: prints a line of the table; answers and rate are left in $answers and $rate.
load() {
    local name=$1 script=$2 time=$3 connections=$4 url=$5 p50 p99 bad
    shift 5
    (cd benches/http && wrk -t1 -c"$connections" -d"${time}s" --timeout 10s -s "$script" "$url" -- "$@") > "$work/wrk" || fail "wrk: $(cat "$work/wrk")"
    read -r answers rate p50 p99 bad < <(sed -n 's/^figures //p' "$work/wrk")
    printf '%-34s %9s/s  p50 %7s ms  p99 %7s ms  %s\n' "$name" "$rate" "$p50" "$p99" \
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

reads() {
    curl -sf -H "Authorization: Bearer $auditor" "$url/audit/events?type=order.created&limit=500" \
        | jq -r '.events[].payload.order_id' > "$work/ids"
    [ -s "$work/ids" ] || fail "no order is listed"
    load "$1" order.lua "$seconds" $connections "$url" "$buyer" "$work/ids"
}

lives() {
    local kid
    kid=$(curl -sf -H "Authorization: Bearer $operator" "$url/admin/signers" | jq -r '[.signers[] | select(.purpose == "finance")][0].signer_kid')
    printf '%s:\n' "$1"
    BUYER_TOKEN=$buyer SERVICE_TOKEN=$service "$bin/http-lives" "$url" "$dir/keys/dev-finance.pem" "$kid" 300 | sed 's/^/    /'
}

weight() {
    printf '%4s s  %8s KiB resident  %4s files  %3s threads\n' "$1" "$(awk '/^VmRSS/ { print $2 }' "/proc/$server/status")" \
        "$(ls "/proc/$server/fd" | wc -l)" "$(awk '/^Threads/ { print $2 }' "/proc/$server/status")"
}

echo "$(nproc) cores, $connections connections, $seconds s each, profile $profile"
serve "$work/embedded"
baseline_url=http://127.0.0.1:$((port + 1000))
"$bin/http-baseline" "${baseline_url#http://}" "$dir/keys/dev-token.key" > "$work/baseline.log" &
pids+=("$!")
sleep 0.5
baseline=
load "empty handler" checkout.lua "$seconds" $connections "$baseline_url" "$buyer" buyer@example.org run
baseline=$rate
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

if [ "$soak" -gt 0 ]; then
    # Half of the connections write, half read, in rounds of ten seconds, on a ledger that grows.
    serve "$work/soak"
    load "soak, warming up" checkout.lua 5 $connections "$url" "$buyer" buyer@example.org warm
    curl -sf -H "Authorization: Bearer $auditor" "$url/audit/events?type=order.created&limit=500" \
        | jq -r '.events[].payload.order_id' > "$work/ids"
    weight 0
    for round in $(seq $((soak * 6))); do
        (cd benches/http && wrk -t1 -c32 -d10s --timeout 10s -s order.lua "$url" -- "$buyer" "$work/ids") > "$work/reads" &
        reading=$!
        load "soak, POST /checkout beside reads" checkout.lua 10 32 "$url" "$buyer" buyer@example.org "soak-$round" > "$work/line"
        wait "$reading"
        [ "$(sed -n 's/^figures //p' "$work/reads" | cut -d' ' -f5)" = 0 ] || fail "soak: reads failed: $(cat "$work/reads")"
        printf '%s  %s checkouts/s, %s reads/s\n' "$(weight $((round * 10)))" "$rate" "$(sed -n 's/^figures //p' "$work/reads" | cut -d' ' -f2)"
    done
    stop
fi
