"""Second, independent verifier of ledger format 1, written from FORMAT.md alone; "section n" and "step n" are its own."""
import argparse, base64, functools, hashlib, json, re, sqlite3, struct, sys, unicodedata
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

COLUMNS = {line.split()[0]: line.split()[1:] for line in """ledger ledger_id;
    entries chain idx prev_hash stream revision parent_hash event_id event_type schema_version recorded_at_us
        body_hash body_sha256 entry_hash parent_index body;
    private_documents chain idx document; commits chain first_index size registry_size registry_head;
    commit_signatures chain first_index kid alg signature; checkpoints chain size root note;
    chain_heads chain size head_hash compact_range; stream_heads chain stream revision head_hash head_index;
    tiles chain level n hashes; event_id_runs chain run ids; cursors projection chain size;
    orders chain order_id status sku_id buyer amount currency scale refunded delivery_mode key_fingerprint
        ledger_proof_id deliveries revision created_at_us updated_at_us;
    deliveries chain delivery_id order_id n status mode key_fingerprint artifact_sha256 ciphertext_sha256 proof_id
        downloads revision updated_at_us;
    licences chain license_id order_id sku_id buyer idx; delivery_proofs chain proof_id order_id delivery_id idx;
    skus chain sku_id status title amount currency scale revision; idempotency chain key idx""".split(";")}
DIGESTS = set("ledger_id prev_hash parent_hash body_hash body_sha256 entry_hash registry_head root head_hash".split())
BLOBS = DIGESTS | set("event_id body document signature compact_range hashes ids key".split())
TEXTS = set("""stream event_type kid note projection order_id status sku_id buyer currency delivery_mode key_fingerprint
    ledger_proof_id delivery_id mode artifact_sha256 ciphertext_sha256 proof_id license_id title""".split())
PROJECTIONS = ("orders", "deliveries", "licences", "delivery_proofs", "skus", "idempotency")
KEYS = {"chain_heads": 1, "tiles": 3}                     # how many columns form the key, where not 2
DERIVED = {"chain_heads": "chain_head_mismatch", "stream_heads": "stream_head_mismatch", "tiles": "tile_mismatch",
           "event_id_runs": "event_index_mismatch", "cursors": "cursor_mismatch",
           **dict.fromkeys(PROJECTIONS, "projection_mismatch")}
UNPLACED = {"entries": "entry_undecodable", "private_documents": "private_unexpected", "commits": "commit_undecodable",
            "commit_signatures": "commit_signature_orphan", "checkpoints": "checkpoint_undecodable", **DERIVED}
# Section 9: event | payload (? may be absent, default type text) | allowed order statuses | allowed statuses of the
# current delivery | status reached. An empty field sets no condition, or leaves the status.
EVENTS = {line.split("|")[0].strip(): [f.strip() for f in line.split("|")[1:]] for line in """
    sku.listed|sku_id title price:M author_id?|||listed
    sku.withdrawn|sku_id reason?|||withdrawn
    order.created|order_id sku_id sku_revision:int buyer total:M delivery_mode:mode key_fingerprint?:hex64|||pending
    payment.captured|provider payment_id total:M|pending payment_failed||paid
    payment.failed|provider payment_id reason|pending payment_failed||payment_failed
    payment.mismatch|provider payment_id total:M|pending payment_failed||
    order.settled|ledger_proof_id finance_proof?:doc|paid||settled
    license.issued|license_id expires_at?:int|settled||licensed
    delivery.requested|delivery_id order_id n:int mode:mode key_fingerprint?:hex64 reissue_of?:int|||requested
    delivery.encrypted|algorithm artifact_sha256:hex64 ciphertext_sha256:hex64|licensed finalized|requested failed|encrypted
    delivery.ready|proof_id proof?:doc|licensed finalized|encrypted|ready
    delivery.downloaded||finalized|ready downloaded|downloaded
    delivery.failed|reason||requested encrypted|failed
    delivery.reissued|reason next:int|licensed finalized|ready downloaded failed|reissued
    order.finalized|delivery:int|licensed|ready|finalized
    order.cancelled|reason|pending payment_failed||cancelled
    order.refunded|refund:M reason|paid settled licensed finalized||
    subject.erased|reason entries:ints|||""".strip().splitlines()}
ACTIONS = {"key.enrolled": ("enrol", "type key:key"), "key.rotated": ("rotate", "type key:key old_kid:kid cut:ints"),
           "key.revoked": ("revoke", "type kid:kid reason cut:ints compromised_since?:ints")}
PURPOSES = "governance commit checkpoint export licence delivery-proof finance kernel".split()
LIMITS = {"body_bytes": 65536, "commit_bytes": 16777216, "commit_entries": 4096, "private_bytes": 65536}
ZEROS, U63, SAFE, BAD = bytes(32), 2**63, 2**53 - 1, ()         # BAD: any value of the wrong storage class

def load(source):
    """The rows of all tables, and a dump's trusted id and expectation."""
    def typed(name, value):
        kind = bytes if name in BLOBS else str if name in TEXTS else int
        if in_json and kind is bytes and type(value) is str and re.fullmatch("(?:[0-9a-f]{2})*", value):
            return bytes.fromhex(value)
        return value if value is None or type(value) is kind else BAD
    trust, expect, path, in_json = None, None, Path(source), source.endswith(".json")
    if in_json:
        dump = json.loads(path.read_bytes())
        tables, trust, expect = dump["tables"], dump.get("trust"), dump.get("expect")
        if dump["format"] != "ledger-dump/1":
            raise ValueError("not a dump of format 1")
    else:
        db = sqlite3.connect(f"file:{quote(str(path / 'ledger.db'))}?mode=ro", uri=True, isolation_level=None)
        db.row_factory, db.text_factory = sqlite3.Row, lambda raw: raw.decode(errors="surrogateescape")
        db.execute("BEGIN")
        names = {r["name"] for r in db.execute("SELECT name FROM sqlite_master")} & COLUMNS.keys()
        tables = {name: [dict(row) for row in db.execute(f"SELECT * FROM {name}")] for name in names}
    rows = {table: [SimpleNamespace(**{c: typed(c, row.get(c)) for c in columns}) for row in tables.get(table, ())]
            for table, columns in COLUMNS.items()}
    return rows, bytes.fromhex(trust) if trust else None, expect

def decodable(row, table):
    """Whether every column of the row has its type, length and range (sections 2.3 and 8)."""
    def fits(name, value):
        if name in BLOBS:
            return type(value) is bytes and len(value) == (32 if name in DIGESTS else 16 if name == "event_id" else len(value))
        if value is None:
            return name in ("note", "parent_index")
        return type(value) is str and value.isascii() or name == "note" if name in TEXTS else value != BAD and 0 <= value < U63
    return all(fits(name, getattr(row, name)) for name in COLUMNS[table])

def sha(data):
    return hashlib.sha256(data).digest()

def b3(what, data):
    return blake3(data, derive_key_context="ledger 2026 v1 " + what).digest()

def string(text):
    return struct.pack("<Q", len(text)) + text.encode("ascii")

def full_subtrees(leaves):
    """RFC 6962: levels[k][i] is the root of the full subtree over leaves i * 2^k up to (i + 1) * 2^k."""
    levels = [leaves]
    while len(below := levels[-1]) > 1:
        levels.append([sha(b"\1" + below[i] + below[i + 1]) for i in range(0, len(below) - 1, 2)])
    return levels

def compact_range(levels, size):
    bits = [k for k in reversed(range(size.bit_length())) if size >> k & 1]
    return [levels[k][(size >> k) - 1] for k in bits]

def tree_root(levels, size):
    parts = compact_range(levels, size)[::-1]
    return functools.reduce(lambda right, left: sha(b"\1" + left + right), parts) if parts else sha(b"")

# y coordinates (sign bit cleared) of every encoding, canonical or not, of a point of order 1, 2, 4 or 8.
P, ORDER, Y8 = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493, int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
SMALL_ORDER = {0, 1, P - 1, P, P + 1, Y8, P - Y8}

def verifies(public_hex, signature, message):
    public, s = bytes.fromhex(public_hex), int.from_bytes(signature[32:], "little")
    points = [int.from_bytes(p, "little") % 2**255 for p in (public, signature[:32])]
    if len(signature) != 64 or s >= ORDER or any(y in SMALL_ORDER or y >= P for y in points):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        return True
    except (InvalidSignature, ValueError):
        return False

def jcs(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

def parse_body(body):
    """The value of a canonical body (section 2.1), else None. Parsing requires names in JCS order, so printing the
    value again gives the same bytes only if the body is canonical."""
    def refuse(what):
        raise ValueError(what)
    def members(pairs):
        names = [name.encode("utf-16-be") for name, _ in pairs]
        return dict(pairs) if names == sorted(set(names)) else refuse("names")
    def integer(text):
        return int(text) if len(text) <= 17 and abs(int(text)) <= SAFE else refuse("number")
    def plain(value, depth):
        if type(value) not in (dict, list):
            return type(value) is not str or "\0" not in value
        inside = [*value, *value.values()] if type(value) is dict else value
        return depth <= 32 and all(plain(v, depth + 1) for v in inside)
    try:
        value = json.loads(body.decode(), object_pairs_hook=members, parse_int=integer, parse_float=refuse,
                           parse_constant=refuse)
        canonical = len(body) <= 65536 and jcs(value) == body and plain(value, 1)
    except (ValueError, RecursionError):
        return None
    return value if canonical and shaped(value, "actor_id:str payload:dict private_sha256?:hex64 meta?:meta") else None

@functools.cache
def members_of(form):
    pairs = [(m + ":text").split(":")[:2] for m in form.split()]
    return {n.rstrip("?"): TYPES[t] for n, t in pairs}, {n for n, _ in pairs if not n.endswith("?")}

def shaped(value, form):
    """Whether value is an object with exactly the members of the form, each of its type."""
    types, required = members_of(form)
    return (type(value) is dict and required <= value.keys() <= types.keys()
            and all(types[name](v) for name, v in value.items()))

def matches(pattern):
    return lambda v: type(v) is str and re.fullmatch(pattern, v) is not None

TYPES = {
    "str": lambda v: type(v) is str, "dict": lambda v: type(v) is dict, "list": lambda v: type(v) is list,
    "text": lambda v: type(v) is str and len(v.encode()) <= 1024, "int": lambda v: type(v) is int,
    "ints": lambda v: type(v) is list and all(type(i) is int and i >= 0 for i in v),
    "hex32": matches("[0-9a-f]{32}"), "hex64": matches("[0-9a-f]{64}"), "hex128": matches("[0-9a-f]{128}"),
    "kid": matches("[a-z0-9][a-z0-9._-]{0,63}"), "mode": matches("buyer-managed|marketplace-managed"),
    "currency": matches("[A-Z]{3}"), "meta": lambda v: v == {} or shaped(v, "idem:hex64 request:hex64"),
    "M": lambda v: shaped(v, "amount:int currency:currency scale:int") and v["amount"] >= 1 and 0 <= v["scale"] <= 4,
    "doc": lambda v: shaped(v, "sha256:hex64 text:str") and sha(v["text"].encode()).hex() == v["sha256"],
    "key": lambda v: shaped(v, "alg:str kid:kid public_key:hex64 purpose:str") and v["alg"] == "ed25519" and
    v["purpose"] in PURPOSES}

def genesis_valid(body):
    """Section 4, for the parsed body of entry (0, 0)."""
    p = body["payload"] if body and body["actor_id"] == "system" else None
    if not shaped(p, "chains:int limits:dict nonce:hex32 origin:str routing:str checkpoint_key:key commit_key:key "
                  "governance_key:key"):
        return False
    limits, origin, keys = p["limits"], p["origin"], {u: p[u + "_key"] for u in ("checkpoint", "commit", "governance")}
    return (1 <= p["chains"] <= 1024 and p["routing"] == "sha256-case/v1" and 1 <= len(origin.encode()) <= 200
            and not any(c.isspace() or c == "+" or unicodedata.category(c) == "Cc" for c in origin)
            and shaped(limits, " ".join(n + ":int" for n in LIMITS)) and all(1 <= limits[n] <= LIMITS[n] for n in limits)
            and all(key["purpose"] == purpose for purpose, key in keys.items())
            and all(len({key[m] for key in keys.values()}) == 3 for m in ("kid", "public_key")))

@functools.cache
def parse_stream(stream):
    """(kind, case, n) by section 5, kind None for any other stream. A stream that is not routed is its own case."""
    m = re.fullmatch("(ledger|heads|chain(?=-.)|order|delivery|sku)(?:-([0-9a-f]{32}))?(?:-([1-9][0-9]{0,17}))?", stream)
    kind, case, n = m.groups() if m else (None, None, None)
    if (bool(case), bool(n)) != (kind in ("order", "delivery", "sku"), kind in ("chain", "delivery")):
        kind = None
    return kind, case if kind in ("order", "delivery") else stream, int(n or 0)

def case_of(stream):
    return parse_stream(stream)[1]

def sku_stream(sku_id):
    return "sku-" + sha(b"ledger/sku/v1\0" + sku_id.encode(errors="surrogatepass")).hex()[:32]

class Verifier:
    def __init__(self, tables, trust):
        self.trust, self.findings, self.keys, self.prices, self.documents = trust, [], {}, {}, {}
        self.tables = {table: defaultdict(list) for table in tables}
        for table, rows in tables.items():
            for row in rows:
                chain = getattr(row, "chain", None)
                self.tables[table][chain if type(chain) is int and chain >= 0 else None].append(row)

    def report(self, code, chain, table, *key):
        key = [k.hex() if type(k) is bytes else str(k) for k in key]
        self.findings.append({"code": code, "chain": chain, "place": "/".join([table, *key])})

    def run(self):
        self.ledger_id()
        for table, code in UNPLACED.items():
            for row in self.tables[table][None]:
                self.report(code, None, table)
        for chain in sorted({c for rows in self.tables.values() for c in rows if c is not None and c >= self.count}):
            self.report("chain_unknown", chain, "chains")
        self.chains = [self.read_chain(number) for number in range(self.count)]
        self.registry_damaged = self.chains[0].lost or "ledger" in self.chains[0].tainted_cases
        for chain in self.chains:
            self.judge_entries(chain)
        for chain in self.chains:
            if self.known:
                self.commits(chain)
                self.checkpoints(chain)
            if not chain.tainted:
                self.derived(chain)
        return self.findings

    def ledger_id(self):                                                              # step 1
        rows = [row.ledger_id for row in self.tables["ledger"][None]]
        genesis, body = next((e for e in self.tables["entries"][0] if e.idx == 0), None), None
        self.genesis_judged = bool(genesis and type(genesis.body) is bytes and b3("body", genesis.body) == genesis.body_hash)
        if self.genesis_judged:
            self.id, body = sha(b"ledger/id/v1\0" + genesis.body), parse_body(genesis.body)
        else:
            self.id = self.trust or next((r for r in rows if r and len(r) == 32), ZEROS)
        if rows != [self.id] or self.trust not in (None, self.id):
            self.report("ledger_id_mismatch", None, "ledger")
        self.known = genesis_valid(body)                                              # whether the registry is known
        if self.known:
            self.count, self.base = body["payload"]["chains"], body["payload"]["origin"]
            for name in ("governance_key", "commit_key", "checkpoint_key"):
                self.enrol(body["payload"][name], 1)
        else:
            self.count = 1 + max((c for c in self.tables["entries"] if c is not None and c < 1024), default=0)

    def enrol(self, key, revision):
        self.keys[key["kid"]] = SimpleNamespace(public=key["public_key"], purpose=key["purpose"], enrolled=revision,
                                                retired=None, cut=None)

    def home(self, stream):
        """The chain of a stream of section 5, else None."""
        kind, case, n = parse_stream(stream)
        if kind in ("order", "delivery", "sku"):
            case = case.removeprefix("sku-").encode()
            return int.from_bytes(sha(b"ledger/route/v1\0" + case)[:8], "little") % self.count
        return n if kind else None

    def read_chain(self, number):
        """Step 2 as far as it needs no other chain: 2.1 to 2.6 and 2.8, what is tainted, the tree and the SKUs."""
        chain = SimpleNamespace(number=number, end=0, at={}, streams={}, tainted=False, tainted_cases=set(), lost=False,
                                damaged=set(), cases=defaultdict(lambda: SimpleNamespace(
                                    order=None, deliveries={}, licence=None, reissuing=False, private=set())), idem={})
        chain.rows = sorted(self.tables["entries"][number], key=lambda r: r.idx if type(r.idx) is int else U63)
        for row in chain.rows:
            placed, row.parsed, row.stream_fault, row.allowed = decodable(
                SimpleNamespace(chain=0, idx=row.idx, document=b""), "private_documents"), None, None, False
            if placed and row.idx > chain.end:
                self.entry_missing(chain, row.idx)
            row.damage = self.damage(chain, row)
            if placed:
                chain.end = row.idx + 1
                chain.at.setdefault(row.idx, row)
            body_only = row.damage == "body_hash_mismatch" and row.hash == row.entry_hash
            if row.damage:
                chain.damaged.add(row.idx)
                chain.tainted |= not body_only
                chain.lost |= row.damage == "entry_undecodable"
                chain.tainted_cases.add(case_of(row.stream) if row.damage != "entry_undecodable" else None)
            else:
                row.parsed, last = parse_body(row.body), chain.streams.get(row.stream)
                want = (last.idx, last.revision + 1, last.entry_hash) if last else (None, 1, ZEROS)
                have = {"parent_index": row.parent_index, "revision": row.revision, "parent_hash": row.parent_hash}
                row.stream_fault = next((name + "_mismatch" for name, w in zip(have, want) if have[name] != w), None)
            if not row.damage or body_only:
                chain.streams[row.stream] = row
        ends = [c.first_index + c.size for c in self.tables["commits"][number] if self.commit_decodable(c)
                and c.first_index <= chain.end < c.first_index + c.size]
        chain.known_end = max(ends, default=chain.end)
        if ends or not chain.rows:
            self.entry_missing(chain, chain.known_end)
        for row in chain.rows if chain.tainted else ():
            if row.stream_fault:
                chain.tainted_cases.add(case_of(row.stream))
                row.stream_fault = None
        leaves = []
        while (row := chain.at.get(len(leaves))) and (not row.damage or not chain.tainted):
            leaves.append(row.leaf)
        chain.levels, chain.intact = full_subtrees(leaves), min(chain.damaged & chain.at.keys(), default=len(leaves))
        skus = chain.skus = {}
        for row in chain.rows:
            if row.parsed and row.stream.startswith("sku-") and (not self.known or self.home(row.stream) == number):
                row.allowed = self.sku_event(skus, row)
        return chain

    def entry_missing(self, chain, end):
        chain.tainted = chain.lost = True
        self.report("entry_missing", chain.number, "entries", chain.end, end)

    def damage(self, chain, row):
        """Steps 2.1 to 2.6; also computes the header and its hashes."""
        if not (decodable(row, "entries") and row.revision and row.schema_version == 1 and row.recorded_at_us <= SAFE
                and re.fullmatch("[a-z][a-z0-9_.]{0,63}", row.event_type)):
            return "entry_undecodable"
        place = self.id + struct.pack("<IQ", row.chain, row.idx)
        row.header = b"".join((
            struct.pack("<H", 1), place, row.prev_hash, string(row.stream), struct.pack("<Q", row.revision), row.parent_hash,
            row.event_id, string(row.event_type), struct.pack("<Hq", row.schema_version, row.recorded_at_us),
            row.body_hash, row.body_sha256))
        row.hash, row.leaf, event_id = b3("entry", row.header), sha(b"\0" + row.header), bytearray(b3("event-id", place)[:16])
        event_id[6], event_id[8] = 0x80 | event_id[6] & 0x0f, 0x80 | event_id[8] & 0x3f
        last = chain.at.get(row.idx - 1)
        linked = last is None or last.damage == "entry_undecodable" or row.prev_hash in (
            last.entry_hash, last.damage and last.hash)
        return ("entry_duplicate" if row.idx in chain.at
                else "body_hash_mismatch" if (b3("body", row.body), sha(row.body)) != (row.body_hash, row.body_sha256)
                else "event_id_mismatch" if row.event_id != event_id
                else "prev_hash_mismatch" if not linked or row.idx == 0 and row.prev_hash != ZEROS
                else "entry_hash_mismatch" if row.hash != row.entry_hash else None)

    def judge_entries(self, chain):
        """Steps 2.7 to 2.12 and 3, in chain order, folding the entries into the cases and the key registry."""
        last, documents = None, self.documents.setdefault(chain.number, {})
        for doc in self.tables["private_documents"][chain.number]:
            row = chain.at.get(doc.idx)
            if not row or doc.idx in documents or row.parsed and "private_sha256" not in row.parsed:
                self.report("private_unexpected", chain.number, "private_documents", doc.idx)
            documents.setdefault(doc.idx, doc.document)
        for row in chain.rows:
            row.code = row.damage
            if not row.damage:
                if last and not last.code and row.recorded_at_us < last.recorded_at_us:
                    row.code = "time_regression"
                fault = self.fold(chain, row)
                row.code = row.code or row.stream_fault or fault
                named, doc = (row.parsed or {}).get("private_sha256"), documents.get(row.idx)
                if not row.code and named and row.idx in documents:
                    whole = type(doc) is bytes and len(doc) <= 65536 and sha(doc).hex() == named
                    row.code = None if whole else "private_mismatch"
            if self.genesis_judged and not self.known and chain.number == 0 and row is chain.at.get(0):
                row.code = "genesis_invalid"
            if row.code:
                self.report(row.code, chain.number, "entries", row.idx)
            last = row

    def fold(self, chain, row):
        if not row.parsed:
            return "body_invalid"
        (kind, name, n), event, p = parse_stream(row.stream), row.event_type, row.parsed["payload"]
        if idem := row.parsed.get("meta", {}).get("idem"):
            chain.idem.setdefault(bytes.fromhex(idem), row.idx)
        if self.known and self.home(row.stream) != chain.number:
            return "routing_mismatch"
        if not kind or not self.known and (event.startswith("key.") or kind in ("ledger", "heads")):
            return None
        case, creation = chain.cases[name], {0: ("ledger", "ledger.created")}.get(chain.number, ("chain", "chain.created"))
        if event.startswith("key."):
            allowed = kind == "ledger" and self.registry_event(row, p)
        elif row.idx == 0:
            allowed = (kind, event) == creation and (kind == "ledger" or (p, row.parsed["actor_id"]) == ({"chain": n}, "system"))
        elif event == "chain.heads":
            allowed = kind == "heads" and self.heads_event(row, p)
        else:
            allowed = row.allowed if kind == "sku" else self.case_event(case, row, kind, name, n, p)
        if "private_sha256" in row.parsed:
            case.private.add(row.idx)
        if not allowed and name not in chain.tainted_cases:
            return "registry_invalid" if event.startswith("key.") else "illegal_transition"

    def sku_event(self, skus, row):
        form, p, sku = EVENTS.get(row.event_type), row.parsed["payload"], skus.get(row.stream, {"status": None})
        if (not form or not row.event_type.startswith("sku.") or not shaped(p, form[0]) or sku_stream(p["sku_id"]) != row.stream
                or (sku["status"] == "listed") != (row.event_type == "sku.withdrawn")):
            return False
        if row.event_type == "sku.listed":
            sku = skus[row.stream] = {"sku_id": p["sku_id"], "title": p["title"], **p["price"]}
            self.prices[row.stream, row.revision] = p["price"]
        sku.update(status=form[3], revision=row.revision)
        return True

    def case_event(self, case, row, kind, name, n, p):
        """Section 9 for the streams of an order and its deliveries: False and no effect if the event is not allowed."""
        event, order, form = row.event_type, case.order, EVENTS.get(row.event_type)
        family = "order" if event.split(".")[0] in ("payment", "license", "subject") else event.split(".")[0]
        if not form or family != kind or not shaped(p, form[0]) or (order is None) != (event == "order.created"):
            return False
        status, count = (order["status"], order["deliveries"]) if order else (None, 0)
        current, money = case.deliveries.get(count, {"status": None}), p.get("total", p.get("refund"))
        equal = {m: order and order[m] == money[m] for m in money or ()}
        fingerprint = ("key_fingerprint" in p) == ("buyer-managed" in (p.get("mode"), p.get("delivery_mode")))
        again = "reissue_of" in p
        if (case.reissuing and not again or form[1] and status not in form[1].split() or not fingerprint
                or form[2] and current["status"] not in form[2].split()
                or kind == "delivery" and n != count + (event == "delivery.requested")):
            return False
        allowed = {
            "order.created": lambda: p["order_id"] == name and self.price_agrees(p),
            "payment.captured": lambda: all(equal.values()),
            "payment.mismatch": lambda: not all(equal.values()),
            "license.issued": lambda: p["license_id"] == "license-" + name,
            "delivery.requested": lambda: (p["delivery_id"], p["order_id"], p["n"]) == (row.stream, name, n) and (
                case.reissuing and p["reissue_of"] == n - 1 if again else status == "licensed" and n == 1),
            "delivery.ready": lambda: p["proof_id"] == f"proof-{name}-{n}",
            "delivery.reissued": lambda: p["next"] == n + 1,
            "order.finalized": lambda: p["delivery"] == count,
            "order.refunded": lambda: (equal["currency"] and equal["scale"]
                                       and order["refunded"] + money["amount"] <= order["amount"]),
            "subject.erased": lambda: set(p["entries"]) <= case.private and p["entries"] == sorted(set(p["entries"])),
        }.get(event, lambda: True)()
        if not allowed:
            return False
        if event == "order.created":
            case.order = order = {**p, **p["total"], "refunded": 0, "deliveries": 0, "created_at_us": row.recorded_at_us}
        elif event == "order.settled":
            order["ledger_proof_id"] = p["ledger_proof_id"]
        elif event == "license.issued":
            case.licence = {**order, **p, "idx": row.idx}
        elif event == "order.refunded":
            order["refunded"] += money["amount"]
            order["status"] = "refunded" if order["refunded"] == order["amount"] else status
        elif event == "delivery.requested":
            order["deliveries"] = n
            case.deliveries[n] = current = {**p, "downloads": 0}
        elif event in ("delivery.encrypted", "delivery.ready"):
            current.update(p, idx=row.idx)
        elif event == "delivery.downloaded":
            current["downloads"] += 1
        case.reissuing, target = event == "delivery.reissued", order if kind == "order" else current
        target.update(status=form[3] or target["status"], revision=row.revision, updated_at_us=row.recorded_at_us)
        return True

    def price_agrees(self, p):
        stream = sku_stream(p["sku_id"])
        chain = self.chains[self.home(stream)]
        return (not self.known or chain.tainted or stream in chain.tainted_cases
                or self.prices.get((stream, p["sku_revision"])) == p["total"])

    def heads_event(self, row, p):
        if not shaped(p, "heads:list") or len(p["heads"]) != self.count:
            return False
        for chain, head in zip(self.chains, p["heads"]):
            if not shaped(head, "chain:int head_hash:hex64 root:hex64 size:int") or head["chain"] != chain.number:
                return False
            size = head["size"]
            if size < 0 or chain.number == 0 and size > row.idx or size > chain.end and not chain.tainted:
                return False
            if size <= chain.intact:                         # otherwise it covers a damaged or missing row: not judged
                last = chain.at[size - 1].hash if size else ZEROS
                if (head["root"], head["head_hash"]) != (tree_root(chain.levels, size).hex(), last.hex()):
                    return False
        return True

    def registry_event(self, row, p):
        """Section 6 for the entries after the first, except that they end their commit: see commits."""
        action, (kind, form) = p.get("action"), ACTIONS.get(row.event_type, ("", ""))
        members = "action:dict governance_kid:kid governance_signature:hex128"
        members += " possession_signature:hex128" if "key:key" in form else ""
        if not kind or not shaped(action, form) or action["type"] != kind or not shaped(p, members):
            return False
        message = b"ledger/govern/v1\0" + self.id + struct.pack("<Q", row.revision) + row.parent_hash + jcs(action)
        governor, new, since = self.keys.get(p["governance_kid"]), action.get("key"), action.get("compromised_since")
        if (not governor or governor.purpose != "governance" or governor.retired
                or not verifies(governor.public, bytes.fromhex(p["governance_signature"]), message)):
            return False
        if new and (new["kid"] in self.keys or new["public_key"] in (key.public for key in self.keys.values())
                    or not verifies(new["public_key"], bytes.fromhex(p["possession_signature"]), message)):
            return False
        if kind != "enrol":
            old, cut = self.keys.get(action.get("old_kid", action.get("kid"))), action["cut"]
            if (not old or old.retired or new and new["purpose"] != old.purpose
                    or len(cut) != self.count or cut[0] != row.idx + 1
                    or any(size > chain.end and not chain.tainted for chain, size in zip(self.chains, cut))
                    or since and (len(since) != len(cut) or any(s > c for s, c in zip(since, cut)))):
                return False
            old.retired, old.cut = row.revision, cut
        if new:
            self.enrol(new, row.revision)
        return True

    @staticmethod
    def commit_decodable(commit):
        return decodable(commit, "commits") and 1 <= commit.size <= 4096

    def commits(self, chain):
        """Step 4."""
        number, floor, seen = chain.number, 0, set()
        rows = sorted(self.tables["commits"][number], key=lambda c: c.first_index if type(c.first_index) is int else U63)
        starts, signatures = {c.first_index for c in rows}, defaultdict(dict)
        for s in sorted(self.tables["commit_signatures"][number], key=lambda s: str(s.kid)):
            if s.first_index not in starts or s.kid in signatures[s.first_index]:
                self.report("commit_signature_orphan", number, "commit_signatures", s.first_index, s.kid)
            signatures[s.first_index].setdefault(s.kid, s)
        for c in rows:
            c.code = None if self.commit_decodable(c) and c.first_index not in seen else "commit_undecodable"
            c.end, seen = c.first_index + c.size if not c.code else None, seen | {c.first_index}
        line = [SimpleNamespace(end=0, code=None), *rows, SimpleNamespace(first_index=chain.known_end, end=0, code=None)]
        for before, c, after in zip(line, rows, line[2:]):
            if not c.code and c.end > chain.known_end:
                c.code = "commit_tiling"
            entries = [chain.at.get(i) for i in range(c.first_index, c.end)] if not c.code else []
            if entries and all(e and not e.damage for e in entries):
                signed = signatures[c.first_index]
                fault = self.position(c, entries, floor) or next(filter(None, (
                    self.signature(c, s, entries) for s in signed.values())), None)
                loose = before.end not in (None, c.first_index) or after.end is not None and after.first_index != c.end
                c.code = ("commit_tiling" if fault and loose else "commit_unsigned" if not signed
                          else "commit_undecodable" if len(signed) > 4 else fault or self.contents(c, entries))
            floor = floor if c.code else c.registry_size
            if c.code:
                self.report(c.code, number, "commits", c.first_index)
        for a, b in zip(line, line[1:]):
            if not a.code and not b.code and a.end != b.first_index:
                self.report("commit_tiling", number, "commits", a.end)

    def position(self, c, entries, floor):
        """Step 4.4: the registry position that the signers of a commit claim."""
        size, first = c.registry_size, self.chains[0]
        revisions = [e.revision for e in entries if c.chain == 0 and e.stream == "ledger"]
        heads = [(e.entry_hash, e.hash) for e in first.rows if e.damage != "entry_undecodable" and (
            e.stream, e.revision) == ("ledger", size)]
        genesis = c.chain == c.first_index == 0
        known = any(c.registry_head in pair for pair in heads) or not heads and (size > 0 and first.tainted)
        if genesis and (size, c.registry_head) != (0, ZEROS) or not genesis and not known \
                or size < floor or any(size >= r for r in revisions):
            return "registry_position_mismatch"

    def signature(self, c, s, entries):
        """Steps 4.5 and 4.6."""
        key, end = self.keys.get(s.kid), c.first_index + c.size
        if not key:
            return None if self.registry_damaged else "kid_unknown"
        if key.purpose != "commit":
            return "kid_wrong_purpose"
        if s.alg != 1:
            return "algorithm_mismatch"
        if key.enrolled > max(1, c.registry_size) or key.retired and (key.retired <= c.registry_size or end > key.cut[c.chain]):
            return "kid_not_valid"
        root = tree_root(full_subtrees([e.leaf for e in entries]), c.size)
        statement = b"".join((b"ledger/commit/v1\0", self.id, struct.pack("<IQI", c.chain, c.first_index, c.size), root,
                              entries[-1].hash, struct.pack("<Q", c.registry_size), c.registry_head, b"\1", string(s.kid)))
        ok = type(s.signature) is bytes and verifies(key.public, s.signature, statement)
        return None if ok else "commit_signature_invalid"

    def contents(self, c, entries):
        documents = self.documents[c.chain]
        for e in entries[:-1]:                               # a registry entry is the last of its commit
            if e.stream == "ledger" and e.event_type.startswith("key.") and not e.code:
                self.report("registry_invalid", c.chain, "entries", e.idx)
        total = sum(len(e.header) + len(e.body) + len(documents.get(e.idx) or b"") for e in entries)
        return "commit_too_large" if total > LIMITS["commit_bytes"] else None

    def checkpoints(self, chain):
        """Step 5."""
        number, seen = chain.number, set()
        origin = f"{self.base}/{self.id.hex()[:16]}/{number}"
        for c in sorted(self.tables["checkpoints"][number], key=lambda c: c.size if type(c.size) is int else U63):
            code = self.checkpoint(chain, c, origin) if decodable(c, "checkpoints") and c.size not in seen \
                else "checkpoint_undecodable"
            seen.add(c.size)
            if code:
                self.report(code, number, "checkpoints", c.size)

    def checkpoint(self, chain, c, origin):
        m = re.fullmatch("((.+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n)\n((?:— [^ \n]+ [A-Za-z0-9+/]+=*\n)+)", c.note or "")
        signatures = []
        if c.note is not None:
            if not m:
                return "checkpoint_undecodable"
            lines = [line.split(" ")[1:] for line in m[5].splitlines()]
            try:
                blobs = [(name, base64.b64decode(blob, validate=True)) for name, blob in lines]
                if any(len(b) < 5 or base64.b64encode(b).decode() != line[1] for (_, b), line in zip(blobs, lines)):
                    return "checkpoint_undecodable"
            except ValueError:
                return "checkpoint_undecodable"
            if (m[2], int(m[3]), m[4]) != (origin, c.size, base64.b64encode(c.root).decode()):
                return "checkpoint_mismatch"
            for key in self.keys.values():
                keyid = sha(origin.encode() + b"\n\1" + bytes.fromhex(key.public))[:4]
                signatures += [(key, b[4:]) for name, b in blobs if (name, b[:4], key.purpose) == (origin, keyid, "checkpoint")]
        if c.size > chain.known_end:
            return "checkpoint_beyond_tail"
        if c.size <= chain.intact and c.root != tree_root(chain.levels, c.size):
            return "checkpoint_root_mismatch"
        if c.note is None or not signatures:
            return None if c.note is None or self.registry_damaged else "kid_unknown"
        if any(key.retired and c.size > key.cut[c.chain] for key, _ in signatures):
            return "kid_not_valid"
        if not all(verifies(key.public, signature, m[1].encode()) for key, signature in signatures):
            return "checkpoint_signature_invalid"

    def derived(self, chain):
        """Step 6: every derived table, recomputed."""
        size, levels, cases = chain.end, chain.levels, chain.cases.values()
        ids, full, spans = [chain.at[i].event_id for i in range(size)], 0, {}
        tiles = []
        while size >> 8 * (full + 1):
            for n in range(size >> 8 * (full + 1)):
                tiles.append({"level": full, "n": n, "hashes": b"".join(levels[8 * full][256 * n:256 * n + 256])})
                spans[full, n] = range(n << 8 * (full + 1), n + 1 << 8 * (full + 1))
            full += 1
        want = {
            "chain_heads": [{"size": size, "head_hash": chain.at[size - 1].hash,
                             "compact_range": b"".join(compact_range(levels, size))}],
            "stream_heads": [{**vars(row), "head_hash": row.hash, "head_index": row.idx} for row in chain.streams.values()],
            "tiles": tiles,
            "event_id_runs": [{"run": run, "ids": b"".join(sorted(
                ids[4096 * run + i][:8] + struct.pack("<H", i) for i in range(4096)))} for run in range(size // 4096)],
            "cursors": [{"projection": name, "size": size} for name in PROJECTIONS],
            "orders": [case.order for case in cases if case.order],
            "deliveries": [d for case in cases for d in case.deliveries.values()],
            "licences": [case.licence for case in cases if case.licence],
            "delivery_proofs": [d for case in cases for d in case.deliveries.values() if "proof_id" in d],
            "skus": chain.skus.values(),
            "idempotency": [{"key": key, "idx": idx} for key, idx in chain.idem.items()]}

        def judged(table, key):
            if table == "tiles":
                return chain.damaged.isdisjoint(spans.get(key[1:], ()))
            if table in ("chain_heads", "event_id_runs", "cursors"):
                return True
            if table == "idempotency":
                return not chain.tainted_cases
            name = key[1] if type(key[1]) is str else ""
            case = {"stream_heads": case_of, "skus": sku_stream}.get(table, lambda k: (re.findall("[0-9a-f]{32}", k) + [k])[0])
            return case(name) not in chain.tainted_cases
        for table, code in DERIVED.items():
            columns, width = COLUMNS[table], KEYS.get(table, 2)
            found = defaultdict(lambda: ([], []))
            for side, rows in enumerate((want[table], map(vars, self.tables[table][chain.number]))):
                for row in rows:
                    values = tuple({**row, "chain": chain.number}.get(c) for c in columns)
                    found[values[:width]][side].append(values)
            for key in sorted(found, key=repr):
                if found[key][0] != found[key][1] and judged(table, key):
                    self.report(code, chain.number, table, *key)

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trust", type=bytes.fromhex, help="the ledger id, known from elsewhere")
    parser.add_argument("--check", action="store_true", help="compare dumps with their expectation; exit 3 on a difference")
    parser.add_argument("source", nargs="+", help="a ledger directory or a dump (.json)")
    args, statuses, differs = parser.parse_args(), set(), False
    for source in args.source:
        expect, findings, status = None, [], 2
        try:
            tables, trust, expect = load(source)
            trust = args.trust or trust
            findings = Verifier(tables, trust).run()
            status = 1 if findings else 0 if trust else 2
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, sqlite3.Error) as error:
            print(f"{source}: cannot be read: {error!r}", file=sys.stderr)
        print(json.dumps({"source": source, "exit": status, "findings": findings}))
        said = {"exit": status, "findings": sorted(f["code"] for f in findings)}
        if args.check and source.endswith(".json") and said != expect:
            differs = True
            print(f"DIFFERENT {source}: expected {json.dumps(expect)}, found {json.dumps(said)}", file=sys.stderr)
        elif not args.check or not source.endswith(".json"):
            statuses.add(status)
    sys.exit(3 if differs else 1 if 1 in statuses else max(statuses, default=0))

if __name__ == "__main__":
    main()
