"""How long does finalising take, with the artifact encrypted, proven and recorded?  benches/finalize.py URL DIR BYTES [ORDERS]

URL and DIR are of a development server (`ledger --dir DIR serve --dev`), DIR the ledger's directory. It sells an artifact of so many bytes, buys it again and again for
an X25519 key, one order after the other, and prints the times of POST /order/{id}/finalize. LEDGER names the program."""
import base64, hashlib, hmac, json, os, statistics, subprocess, sys, time, urllib.request
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

url, folder, size, orders = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 50
ledger = [os.environ.get("LEDGER", "ledger"), "--dir", folder]
run = lambda *args: subprocess.run([*ledger, *args], check=True, capture_output=True, text=True).stdout.strip()
key = lambda name: serialization.load_pem_private_key(open(f"{folder}/keys/{name}.pem", "rb").read(), None)
kid = {k["purpose"]: k["kid"] for k in map(json.loads, run("--json", "keys", "list").splitlines())}
token = {role: run("token", "--sub", sub, "--role", role) for sub, role in [("op", "operator"), ("ann", "buyer"), ("service:finance", "service")]}
jcs = lambda value: json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

def post(path, body, role=None, idem=None, headers={}):
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token[role]}"} if role else {}),
               **({"Idempotency-Key": idem} if idem else {}), **headers}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data, headers)) as answer: return json.load(answer)

with open(f"{folder}/bench-artifact", "wb") as f:
    for at in range(0, size, 1 << 20): f.write(os.urandom(min(1 << 20, size - at)))
digest = json.loads(run("--json", "artifact", "add", f"{folder}/bench-artifact"))["sha256"]
os.remove(f"{folder}/bench-artifact")
manifest = {"artifacts": [{"artifact_id": "a", "artifact_url": "a", "sha256": digest}], "author": {"id": "a", "name": "a"}, "checksum": digest,
            "id": f"bench-{digest[:8]}", "license": {"type": "standard"}, "title": "bench", "version": "1"}
manifest["manifest_signature"] = {"signature": key("dev-kernel").sign(jcs(manifest)).hex(), "signer_kid": kid["kernel"], "ts": "now"}
price = {"amount": 1250, "currency": "EUR", "scale": 2}
post("/sku", {"manifest": manifest, "price": price}, "operator", digest[:16])
pem = X25519PrivateKey.generate().public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
took = []
for n in range(orders):
    order = post("/checkout", {"sku_id": manifest["id"], "buyer_id": "ann", "payment_method": {"provider": "stripe", "payment_intent": "p"},
                               "delivery_preferences": {"mode": "buyer-managed", "buyer_public_key": pem}}, "buyer", f"{digest[:8]}-{n}")["order"]["order_id"]
    event = json.dumps({"id": f"evt-{order}", "type": "payment_intent.succeeded", "data": {"object": {
        "id": "p", "amount": 1250, "amount_received": 1250, "currency": "eur", "metadata": {"order_id": order}}}}).encode()
    at = str(int(time.time()))
    mac = hmac.new(b"whsec_development_only", at.encode() + b"." + event, hashlib.sha256).hexdigest()
    post("/webhooks/payment", event, headers={"Stripe-Signature": f"t={at},v1={mac}"})
    proof = {**price, "ledger_proof_id": f"lp-{n}", "order_id": order, "type": "finance-proof/v1"}
    signature = base64.b64encode(key("dev-finance").sign(jcs(proof))).decode()
    begun = time.perf_counter()
    done = post(f"/order/{order}/finalize", {"ledger_proof_id": f"lp-{n}", "ledger_proof_signature": signature,
                                             "ledger_proof_signer_kid": kid["finance"]}, "service")
    took.append(time.perf_counter() - begun)
    assert done["order"]["status"] == "finalized", done["delivery"]
took = sorted(t * 1000 for t in took)
print(f"{orders} orders of {size} bytes: median {statistics.median(took):.1f} ms, p95 {took[int(len(took) * 0.95)]:.1f} ms, most {took[-1]:.1f} ms")
