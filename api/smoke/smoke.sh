#!/usr/bin/env bash
# Smoke checks of a running ledger server: one order from checkout to the opened delivery, its audit trail and its proofs.
#
#   api/smoke/smoke.sh URL
#
# What it needs to act comes from the environment:
#   BUYER_TOKEN    a token with the role buyer; BUYER_ID is its sub
#   SERVICE_TOKEN  a token with the role service
#   PAYMENT_WEBHOOK_SECRET, FINANCE_KEY (PEM file), FINANCE_KID   to pay and settle a test order
#   SKU            what to buy [sku-e2e]
# Without the last three it stops after the checkout, and says so. Against a development server on this machine:
#   LEDGER_DEV_DIR=ledger-data api/smoke/smoke.sh http://127.0.0.1:8080
# makes the tokens and takes the keys from there.
#
# Needs curl, jq and openssl 3. Exit 0: everything that was tried is as it should be; 1: something is not.
set -euo pipefail

url=${1:?usage: smoke.sh URL}
url=${url%/}
sku=${SKU:-sku-e2e}
ledger=${LEDGER:-ledger}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf '%-22s %s\n' "$1" "$2"; }
fail() { printf 'FAILED %s\n' "$*" >&2; exit 1; }

if [ -n "${LEDGER_DEV_DIR:-}" ]; then
    BUYER_ID=${BUYER_ID:-user:smoke@example.org}
    BUYER_TOKEN=$("$ledger" --dir "$LEDGER_DEV_DIR" token --sub "$BUYER_ID" --role buyer)
    SERVICE_TOKEN=$("$ledger" --dir "$LEDGER_DEV_DIR" token --sub service:finance --role service)
    PAYMENT_WEBHOOK_SECRET=${PAYMENT_WEBHOOK_SECRET:-whsec_development_only}
    FINANCE_KEY=$LEDGER_DEV_DIR/keys/dev-finance.pem
    FINANCE_KID=$("$ledger" --dir "$LEDGER_DEV_DIR" --json keys list | jq -r 'select(.purpose == "finance") | .kid' | head -1)
fi
: "${BUYER_TOKEN:?set BUYER_TOKEN, or LEDGER_DEV_DIR for a development server}" "${BUYER_ID:?set BUYER_ID, the sub of BUYER_TOKEN}"

# call NAME EXPECTED_STATUS TOKEN METHOD PATH [curl arguments]: the answer is in $work/NAME
call() {
    local name=$1 expected=$2 token=$3 method=$4 path=$5 status
    shift 5
    local auth=()
    # Not as an argument, which other users of the machine could read.
    [ -z "$token" ] || auth=(-H "@$work/authorization")
    (umask 077 && printf 'Authorization: Bearer %s\n' "$token" > "$work/authorization")
    status=$(curl -sS -o "$work/$name" -D "$work/$name.headers" -w '%{http_code}' -X "$method" "${auth[@]}" "$@" "$url$path") \
        || fail "$name: $url$path cannot be reached"
    [ "$status" = "$expected" ] || fail "$name: $method $path answered $status, not $expected: $(cat "$work/$name")"
}
json() { jq -er "$2" "$work/$1" || fail "$1: no $2 in $(cat "$work/$1")"; }

call health 200 "" GET /health
[ "$(json health '.ok and .signingConfigured')" = true ] || fail "health: $(cat "$work/health")"
say health "ok, signing configured, mTLS $(json health '.mTLS|tostring')"
call ready 200 "" GET /ready
say ready "store and signer answer"

key="smoke-$(date +%s)-$$"
jq -n --arg sku "$sku" --arg buyer "$BUYER_ID" '{sku_id: $sku, buyer_id: $buyer,
    payment_method: {provider: "stripe", payment_intent: "pi_smoke"},
    delivery_preferences: {mode: "marketplace-managed"}, order_metadata: {purpose: "smoke check"}}' > "$work/order.json"
checkout=(-H "Content-Type: application/json" -H "Idempotency-Key: $key" --data-binary "@$work/order.json")
call checkout 201 "$BUYER_TOKEN" POST /checkout "${checkout[@]}"
order=$(json checkout .order.order_id)
say checkout "order $order, $(json checkout '"\(.order.amount) \(.order.currency) at scale \(.order.scale)"')"
call again 201 "$BUYER_TOKEN" POST /checkout "${checkout[@]}"
[ "$(json again .order.order_id)" = "$order" ] || fail "the same Idempotency-Key made another order"
say "checkout, repeated" "the same order"

if [ -z "${PAYMENT_WEBHOOK_SECRET:-}" ] || [ -z "${FINANCE_KEY:-}" ] || [ -z "${FINANCE_KID:-}" ] || [ -z "${SERVICE_TOKEN:-}" ]; then
    say "not checked" "payment, settlement, licence and proof: PAYMENT_WEBHOOK_SECRET, FINANCE_KEY, FINANCE_KID and SERVICE_TOKEN are not all set"
    exit 0
fi

amount=$(json checkout .order.amount) currency=$(json checkout .order.currency) scale=$(json checkout .order.scale)
jq -cn --arg id "evt_$key" --arg order "$order" --arg currency "${currency,,}" --argjson amount "$amount" \
    '{id: $id, type: "payment_intent.succeeded", data: {object: {id: "pi_smoke", amount: $amount, amount_received: $amount,
      currency: $currency, metadata: {order_id: $order}}}}' > "$work/event.json"
now=$(date +%s)
mac=$({ printf '%s.' "$now"; cat "$work/event.json"; } | openssl dgst -sha256 -hmac "$PAYMENT_WEBHOOK_SECRET" | sed 's/.*= *//')
call webhook 200 "" POST /webhooks/payment -H "Content-Type: application/json" -H "Stripe-Signature: t=$now,v1=$mac" \
    --data-binary "@$work/event.json"
[ "$(json webhook .event_type)" = payment.captured ] || fail "webhook: $(cat "$work/webhook")"
say webhook "payment.captured"

# The finance ledger's part: its signature over the canonical form (RFC 8785) of these six members.
jq -cSjn --argjson amount "$amount" --arg currency "$currency" --argjson scale "$scale" --arg order "$order" \
    --arg proof "lp-$key" '{amount: $amount, currency: $currency, ledger_proof_id: $proof, order_id: $order, scale: $scale,
      type: "finance-proof/v1"}' > "$work/proof.json"
openssl pkeyutl -sign -rawin -inkey "$FINANCE_KEY" -in "$work/proof.json" -out "$work/proof.sig"
jq -n --arg proof "lp-$key" --arg kid "$FINANCE_KID" --arg signature "$(base64 -w0 "$work/proof.sig")" \
    '{ledger_proof_id: $proof, ledger_proof_signature: $signature, ledger_proof_signer_kid: $kid}' > "$work/finalize.json"
call finalize 200 "$SERVICE_TOKEN" POST "/order/$order/finalize" -H "Content-Type: application/json" \
    --data-binary "@$work/finalize.json"
say finalize "order $(json finalize .order.status), delivery $(json finalize .delivery.status)"

call license 200 "$BUYER_TOKEN" GET "/order/$order/license"
jq -c --arg buyer "$BUYER_ID" '{license: .license, expected_buyer_id: $buyer}' "$work/license" > "$work/verify.json"
call verify 200 "$BUYER_TOKEN" POST /license/verify -H "Content-Type: application/json" --data-binary "@$work/verify.json"
[ "$(json verify .verified)" = true ] || fail "verify: $(cat "$work/verify")"
say licence "$(json license .license.license_id), signed by $(json license .license.signer_kid), verified"

call events 200 "$BUYER_TOKEN" GET "/order/$order/events"
say "audit trail" "$(json events '[.events[].event_type] | join(", ")')"
event=$(json events '[.events[] | select(.event_type == "license.issued")][0].id')
# proof_of EVENT FILE: the proof file of an entry, once a checkpoint covers it
proof_of() {
    for _ in $(seq 60); do
        status=$(curl -sS -o "$2" -w '%{http_code}' -H "@$work/authorization" "$url/audit/events/$1/proof")
        [ "$status" = 202 ] || break
        sleep 1
    done
    [ "$status" = 200 ] || fail "proof: answered $status: $(cat "$2")"
}
proof_of "$event" "$work/entry.proof"
say proof "of entry $event, $(wc -c < "$work/entry.proof") bytes"
if command -v "${AUDIT_VERIFY:-audit-verify}" > /dev/null; then
    jq -c .license "$work/license" > "$work/license.json"
    "${AUDIT_VERIFY:-audit-verify}" proof "$work/entry.proof" --licence "$work/license.json" \
        --trust "$(json health .ledger_id)" > "$work/verdict" \
        || fail "audit-verify: $(cat "$work/verdict")"
    say audit-verify "$(head -1 "$work/verdict" | cut -d' ' -f1): the proof, and that the licence is the one it holds"
else
    say "not checked" "the proof file and the licence: audit-verify is not on the path, and AUDIT_VERIFY does not name it"
fi

# The artifact, opened as its buyer does; the marketplace manages the key of this delivery.
if [ "$(json finalize .delivery.status)" = ready ]; then
    delivery=$(json finalize .delivery.delivery_id)
    call artifact 200 "$BUYER_TOKEN" GET "/delivery/$delivery/artifact"
    call key 200 "$BUYER_TOKEN" GET "/delivery/$delivery/key"
    (umask 077 && jq -r .private_key "$work/key" > "$work/key.pem")
    call delivered 200 "$BUYER_TOKEN" GET "/proofs/$(json finalize .delivery.proof_id)"
    proof_of "$(json delivered .event_id)" "$work/delivery.proof"
    "$ledger" open-delivery "$work/artifact" --proof "$work/delivery.proof" --license-proof "$work/entry.proof" --key "$work/key.pem" \
        --trust "$(json health .ledger_id)" --out "$work/opened" > "$work/said" || fail "open-delivery: $(cat "$work/said")"
    say delivery "$delivery: $(wc -c < "$work/artifact") bytes encrypted, $(wc -c < "$work/opened") opened; proof and licence hold"
else
    say "not checked" "the delivery: it is $(json finalize .delivery.status)"
fi
say done "everything is as it should be"
