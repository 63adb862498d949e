#!/usr/bin/env bash
# The legacy half of audit-verify against plain Node, in one run: from a file and from PostgreSQL.
# Usage: benches/legacy.sh [ROWS] [postgres://… whose table audit_events is made anew; a server of its own is started without one]
# Needs Node 20 with npm, and for a server of its own Debian's postgresql-15. Ends with the ratios, and with status 1 if the baseline is
# slower than 70 % of what openssl verifies (a slow baseline would flatter) or a ratio is below its target.
set -euo pipefail
cd "$(dirname "$0")/.."
rows=${1:-200000}
database=${2:-}
work=target/legacy-bench
mkdir -p "$work"

cargo build --release --locked -p audit-verify -p ledger-benches --bins
target/release/make-legacy-chain "$rows" "$work/chain.jsonl" "$work/signers.json"

# Rows a second of a command that verifies the chain, and the seconds it took.
timed() {
    local name=$1 start end
    shift
    start=$(date +%s.%N)
    "$@" > "$work/out.txt"
    end=$(date +%s.%N)
    rate=$(awk -v r="$rows" -v s="$start" -v e="$end" 'BEGIN { printf "%.0f", r / (e - s) }')
    printf '%-28s %10s rows/s\n' "$name" "$rate"
}

failed=0
# The first rate as so many times the second one, which must be at least this.
ratio() {
    awk -v n="$1" -v a="$2" -v b="$3" -v least="$4" \
        'BEGIN { printf "%-44s %6.2f times, at least %s\n", n, a / b, least; exit a / b < least }' || failed=1
}

echo "openssl, one core:"
openssl speed -seconds 3 ed25519 2>/dev/null | tail -1 | tee "$work/openssl.txt"
openssl=$(awk '{ print $NF }' "$work/openssl.txt")
timed "node, file" node benches/legacy-baseline.mjs "$work/chain.jsonl" "$work/signers.json"
node_file=$rate
for threads in 1 2; do
    RAYON_NUM_THREADS=$threads timed "audit-verify, file, $threads cores" \
        taskset -c "0-$((threads - 1))" target/release/audit-verify "$work/chain.jsonl" -s "$work/signers.json"
    [ "$threads" = 1 ] && one_core=$rate
done
two_cores=$rate

if [ -z "$database" ]; then
    programs=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
    server=$(mktemp -d)
    # PostgreSQL refuses to run as root.
    if [ "$(id -u)" = 0 ]; then chown postgres "$server"; as="runuser -u postgres --"; else as=""; fi
    trap '(cd / && $as "$programs/pg_ctl" -D "$server/data" -m immediate stop) > /dev/null; rm -rf "$server"' EXIT
    port=$((20000 + RANDOM % 10000))
    (cd "$server" && $as "$programs/initdb" -D data -U postgres -A trust -E UTF8 > log \
        && $as "$programs/pg_ctl" -D "$server/data" -l "$server/log.server" -w \
            -o "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories=" start > /dev/null)
    database=postgres://postgres@127.0.0.1:$port/postgres
fi
psql -q -v ON_ERROR_STOP=1 "$database" <<SQL
DROP TABLE IF EXISTS audit_events;
CREATE TABLE audit_events (id bigserial PRIMARY KEY, actor_id text, event_type text, payload jsonb, created_at timestamptz,
    hash text, prev_hash text, signature text, signer_kid text);
CREATE TEMPORARY TABLE lines (line text);
\copy lines FROM '$work/chain.jsonl' WITH (FORMAT csv, DELIMITER E'\x01', QUOTE E'\x02')
INSERT INTO audit_events SELECT r.* FROM lines, jsonb_populate_record(NULL::audit_events, line::jsonb) r;
ANALYZE audit_events;
SQL
(cd "$work" && npm install --no-save --silent pg)
# A module finds packages beside itself.
cp benches/legacy-baseline.mjs "$work/baseline.mjs"
timed "node, PostgreSQL" node "$work/baseline.mjs" "$database" "$work/signers.json"
node_database=$rate
timed "audit-verify, PostgreSQL" target/release/audit-verify -d "$database" -s "$work/signers.json"

echo
ratio "node, file, to openssl" "$node_file" "$openssl" 0.7
ratio "node, PostgreSQL, to openssl" "$node_database" "$openssl" 0.7
ratio "two cores to one, file" "$two_cores" "$one_core" 1.7
ratio "audit-verify to node, file" "$two_cores" "$node_file" 16
ratio "audit-verify to node, PostgreSQL" "$rate" "$node_database" 12
exit "$failed"
