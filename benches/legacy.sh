#!/usr/bin/env bash
# The legacy half of audit-verify against plain Node, in one run: from a file, and from PostgreSQL if a database is given.
# Usage: benches/legacy.sh [ROWS] [postgres://… of an empty database]
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
    awk -v n="$name" -v r="$rows" -v s="$start" -v e="$end" 'BEGIN { printf "%-28s %8.2f s %10.0f rows/s\n", n, e - s, r / (e - s) }'
}

echo "openssl, one core:"
openssl speed -seconds 3 ed25519 2>/dev/null | tail -1
timed "node, file" node benches/legacy-baseline.mjs "$work/chain.jsonl" "$work/signers.json"
for threads in 1 2; do
    RAYON_NUM_THREADS=$threads timed "audit-verify, file, $threads cores" \
        taskset -c "0-$((threads - 1))" target/release/audit-verify "$work/chain.jsonl" -s "$work/signers.json"
done

if [ -n "$database" ]; then
    psql -q "$database" <<SQL
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
    timed "audit-verify, PostgreSQL" target/release/audit-verify -d "$database" -s "$work/signers.json"
fi
