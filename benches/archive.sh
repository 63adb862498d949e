#!/usr/bin/env bash
# How fast a ledger is exported into a directory, and restored from there: `benches/archive.sh DIR [ORDERS]`, eight entries an order, DIR must not exist.
# Prints seconds, entries a second, the peak memory and the CPU time of each step, and the time of writing the same bytes raw.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:?a directory that does not exist yet}
orders=${2:-125000}
[ -n "${LEDGER_BIN:-}" ] || { cargo build --release --quiet -p ledger -p audit-verify --bins; LEDGER_BIN=target/release; }
ledger="$LEDGER_BIN/ledger" verify="$LEDGER_BIN/audit-verify"
mkdir "$dir"

# what NAME ENTRIES COMMAND…: times one step.
what() {
    local name=$1 entries=$2
    shift 2
    /usr/bin/time -f '%e %M %U %S' -o "$dir/time" "$@" > "$dir/out" 2> "$dir/err" || { cat "$dir/out" "$dir/err"; exit 1; }
    awk -v name="$name" -v entries="$entries" '{ printf "%-34s %7.2f s  %9.0f entries/s  %6.0f MiB  %7.2f s of CPU\n", name, $1, entries / ($1 > 0 ? $1 : 0.01), $2 / 1024, $3 + $4 }' "$dir/time"
}

awk -v orders="$orders" 'BEGIN {
    price = "{\"amount\":1250,\"currency\":\"EUR\",\"scale\":2}"; hex = sprintf("%064d", 7)
    print "{\"command\":\"sku.list\",\"actor\":\"service:catalog\",\"sku_id\":\"s\",\"title\":\"Font\",\"price\":" price "}"
    for (n = 1; n <= orders; n++) {
        of = "\"actor\":\"service:market\",\"order_id\":\"ref:" n "\""
        print "{\"command\":\"order.create\",\"actor\":\"b" n "@example.org\",\"idempotency_key\":\"k" n "\",\"ref\":\"" n "\",\"sku_id\":\"s\",\"delivery_mode\":\"marketplace-managed\"}"
        print "{\"command\":\"payment.capture\"," of ",\"provider\":\"stripe\",\"payment_id\":\"pi" n "\",\"total\":" price "}"
        print "{\"command\":\"order.settle\"," of ",\"ledger_proof_id\":\"lp" n "\"}"
        print "{\"command\":\"license.issue\"," of "}"
        print "{\"command\":\"delivery.request\"," of "}"
        print "{\"command\":\"delivery.encrypt\"," of ",\"algorithm\":\"AES256-GCM\",\"artifact_sha256\":\"" hex "\",\"ciphertext_sha256\":\"" hex "\"}"
        print "{\"command\":\"delivery.ready\"," of "}"
        print "{\"command\":\"order.finalize\"," of "}"
    }
}' > "$dir/commands"
id=$("$ledger" --dir "$dir/shop" --json init | sed 's/.*"ledger_id":"\([0-9a-f]*\)".*/\1/')
what "submit" $((orders * 8)) "$ledger" --dir "$dir/shop" submit "$dir/commands"
rm "$dir/commands"
what "export, first batch" $((orders * 8)) "$ledger" --dir "$dir/shop" export --out "$dir/archive"
what "export, what is new" 2 "$ledger" --dir "$dir/shop" export --out "$dir/archive"
what "the same with tables" $((orders * 8)) "$ledger" --dir "$dir/shop" export --out "$dir/tables" --parquet
what "the same bytes raw, synced" $((orders * 8)) sh -c "cat $dir/archive/marketplace/*/*/*.gz > $dir/raw && sync $dir/raw"
what "audit-verify the archive" $((orders * 8)) "$verify" "$dir/archive" --trust "$id"
what "audit-verify batch 1 alone" $((orders * 8)) "$verify" "$dir/archive" --trust "$id" --batches 1 --partial "$dir/parts"
what "audit-verify batch 2 alone" 2 "$verify" "$dir/archive" --trust "$id" --batches 2 --partial "$dir/parts"
what "audit-verify combine" $((orders * 8)) "$verify" combine "$dir"/parts/*.summary --trust "$id"
what "restore (verified first)" $((orders * 8)) "$ledger" --dir "$dir/new" restore --from "$dir/archive" --trust "$id" --newest-checkpoint none --drill
what "audit-verify the restored" $((orders * 8)) "$verify" "$dir/new" --trust "$id"
du -sh "$dir/archive" "$dir/parts" "$dir/tables" "$dir/shop/ledger.db" "$dir/new/ledger.db" | sed 's/^/# /'
