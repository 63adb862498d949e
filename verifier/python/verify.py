"""Second, independent verifier of ledger format 1, from FORMAT.md alone: "section" and "step" refer to it."""
import argparse, base64, functools, hashlib, json, re, sqlite3, struct, sys, unicodedata
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

COLUMNS = {table.split()[0]: table.split()[1:] for table in """ledger ledger_id; entries chain idx prev_hash stream
    revision parent_hash event_id event_type schema_version recorded_at_us body_hash body_sha256 entry_hash
    parent_index body; private_documents chain idx document; checkpoints chain size root note;
    commits chain first_index size registry_size registry_head; commit_signatures chain first_index kid alg signature;
    chain_heads chain size head_hash compact_range; stream_heads chain stream revision head_hash head_index;
    tiles chain level n hashes; event_id_runs chain run ids; cursors projection chain size;
    orders chain order_id status sku_id buyer amount currency scale refunded delivery_mode key_fingerprint
    ledger_proof_id deliveries revision created_at_us updated_at_us; deliveries chain delivery_id order_id n status
    mode key_fingerprint artifact_sha256 ciphertext_sha256 proof_id downloads revision updated_at_us;
    licences chain license_id order_id sku_id buyer idx; delivery_proofs chain proof_id order_id delivery_id idx;
    skus chain sku_id status title amount currency scale revision; idempotency chain key idx""".split(";")}
DIGESTS = set("ledger_id prev_hash parent_hash body_hash body_sha256 entry_hash registry_head root head_hash".split())
BLOBS = DIGESTS | set("event_id body document signature compact_range hashes ids key".split())
TEXTS = set("""stream event_type kid note projection order_id status sku_id buyer currency delivery_mode title mode
    key_fingerprint ledger_proof_id delivery_id artifact_sha256 ciphertext_sha256 proof_id license_id""".split())
PROJECTIONS = ("orders", "deliveries", "licences", "delivery_proofs", "skus", "idempotency")
DERIVED = {"chain_heads": "chain_head_mismatch", "stream_heads": "stream_head_mismatch", "tiles": "tile_mismatch",
           "event_id_runs": "event_index_mismatch", "cursors": "cursor_mismatch",
           **dict.fromkeys(PROJECTIONS, "projection_mismatch")}
UNPLACED = {"entries": "entry_undecodable", "private_documents": "private_unexpected",    # rows of no chain at all
            "commits": "commit_undecodable", "commit_signatures": "commit_signature_orphan",
            "checkpoints": "checkpoint_undecodable", **DERIVED}
# Section 9: event | payload (? may be absent, default type text) | statuses of the order and | of the current
# delivery in which it is allowed | status reached. An empty field is no condition, or no change of status.
EVENTS = {row.split("|")[0].strip(): row.split("|")[1:] for row in """sku.listed|sku_id title price:M author_id?|||listed
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
    subject.erased|reason entries:ints|||""".splitlines()}
ACTIONS = {"key.enrolled": ("enrol", "type key:key"), "key.rotated": ("rotate", "type key:key old_kid:kid cut:ints"),
           "key.revoked": ("revoke", "type kid:kid reason cut:ints compromised_since?:ints")}
PURPOSES = "governance commit checkpoint export licence delivery-proof finance kernel".split()
LIMITS = {"body_bytes": 65536, "commit_bytes": 16777216, "commit_entries": 4096, "private_bytes": 65536}
ZEROS, U63, SAFE, BAD = bytes(32), 2**63, 2**53 - 1, ()             # BAD stands for a value of a wrong storage class

def load(source):
    """The rows of all tables (section 8), and a dump's trusted id and expectation."""
    def typed(name, value):
        kind = bytes if name in BLOBS else str if name in TEXTS else int
        if dump and kind is bytes and type(value) is str and re.fullmatch("(?:[0-9a-f]{2})*", value):
            return bytes.fromhex(value)
        return value if value is None or type(value) is kind else BAD
    dump = json.loads(Path(source).read_bytes()) if source.endswith(".json") else {}
    if dump and dump["format"] != "ledger-dump/1":
        raise ValueError("not a dump of format 1")
    if not dump:
        db = sqlite3.connect(f"file:{quote(source)}/ledger.db?mode=ro", uri=True, isolation_level=None)
        db.row_factory, db.text_factory = sqlite3.Row, lambda raw: raw.decode(errors="surrogateescape")
        db.execute("BEGIN")
        names = {row["name"] for row in db.execute("SELECT name FROM sqlite_master")} & COLUMNS.keys()
    tables = dump["tables"] if dump else {name: map(dict, db.execute(f"SELECT * FROM {name}")) for name in names}
    rows = {table: [SimpleNamespace(**{c: typed(c, row.get(c)) for c in columns}) for row in tables.get(table, ())]
            for table, columns in COLUMNS.items()}
    return rows, bytes.fromhex(dump.get("trust") or ""), dump.get("expect")

def decodable(row, table):
    """Whether each column of a row has its type, length and range."""
    def fits(name, value):
        if name in BLOBS:
            return type(value) is bytes and (name not in DIGESTS or len(value) == 32)
        if value is None or name == "note":
            return value is None and name in ("note", "parent_index") or type(value) is str
        return value != BAD and (value.isascii() if name in TEXTS else 0 <= value < U63)
    return all(fits(name, getattr(row, name)) for name in COLUMNS[table])

def commit_decodable(commit):
    return decodable(commit, "commits") and 1 <= commit.size <= 4096

def ordered(rows, column):
    return sorted(rows, key=lambda row: v if type(v := getattr(row, column)) is int else U63)

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
    return [levels[k][(size >> k) - 1] for k in reversed(range(size.bit_length())) if size >> k & 1]

def tree_root(levels, size):
    parts = compact_range(levels, size)[::-1] or [sha(b"")]
    return functools.reduce(lambda right, left: sha(b"\1" + left + right), parts)

# The y coordinates (sign bit cleared) of all encodings, canonical or not, of the points of order 1, 2, 4 and 8.
P, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
Y8 = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
SMALL_ORDER = {0, 1, P - 1, P, P + 1, Y8, P - Y8}

def verifies(public_hex, signature, message):
    public, s = bytes.fromhex(public_hex), int.from_bytes(signature[32:], "little")
    points = [int.from_bytes(point, "little") % 2**255 for point in (public, signature[:32])]
    if len(signature) != 64 or s >= ORDER or any(y in SMALL_ORDER or y >= P for y in points):
        return False
    try:
        return Ed25519PublicKey.from_public_bytes(public).verify(signature, message) is None
    except (InvalidSignature, ValueError):
        return False

def jcs(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

def parse_body(body):
    """The value of a body as in section 2.1, else None. Parsing takes names in JCS order only, and keeps it: so
    printing the value gives the same bytes exactly if the body was canonical."""
    def refuse(what):
        raise ValueError(what)
    def members(pairs):
        names = [name.encode("utf-16-be") for name, _ in pairs]
        return dict(pairs) if names == sorted(set(names)) else refuse("names")
    def integer(text):
        return int(text) if len(text) <= 17 and abs(int(text)) <= SAFE else refuse("number")
    def plain(value, depth):
        inside = [*value, *value.values()] if type(value) is dict else value if type(value) is list else None
        if inside is None:
            return type(value) is not str or "\0" not in value
        return depth <= 32 and all(plain(v, depth + 1) for v in inside)
    try:
        value = json.loads(body.decode(), object_pairs_hook=members, parse_int=integer, parse_float=refuse,
                           parse_constant=refuse)
        good = len(body) <= 65536 and jcs(value) == body and plain(value, 1) and shaped(
            value, "actor_id:str payload:dict private_sha256?:hex64 meta?:meta")
        return value if good else None
    except (ValueError, RecursionError):
        return None

@functools.cache
def members_of(form):
    pairs = [(member + ":text").split(":")[:2] for member in form.split()]
    return {n.rstrip("?"): TYPES[t] for n, t in pairs}, {n for n, _ in pairs if not n.endswith("?")}

def shaped(value, form):
    """Whether value is an object with exactly the members of the form, each of its type."""
    types, required = members_of(form)
    return (type(value) is dict and required <= value.keys() <= types.keys()
            and all(types[name](v) for name, v in value.items()))

def matches(pattern):
    return lambda v: type(v) is str and re.fullmatch(pattern, v) is not None

TYPES = {
    **{t.__name__: lambda v, t=t: type(v) is t for t in (str, int, dict, list)},
    **{f"hex{n}": matches(f"[0-9a-f]{{{n}}}") for n in (32, 64, 128)},
    "text": lambda v: type(v) is str and len(v.encode()) <= 1024, "currency": matches("[A-Z]{3}"),
    "ints": lambda v: type(v) is list and all(type(i) is int and i >= 0 for i in v),
    "kid": matches("[a-z0-9][a-z0-9._-]{0,63}"), "mode": matches("buyer-managed|marketplace-managed"),
    "meta": lambda v: v == {} or shaped(v, "idem:hex64 request:hex64"),
    "M": lambda v: shaped(v, "amount:int currency:currency scale:int") and v["amount"] > 0 and 0 <= v["scale"] <= 4,
    "doc": lambda v: shaped(v, "sha256:hex64 text:str") and sha(v["text"].encode()).hex() == v["sha256"],
    "key": lambda v: (shaped(v, "alg:str kid:kid public_key:hex64 purpose:str") and v["alg"] == "ed25519"
                      and v["purpose"] in PURPOSES),
    "limits": lambda v: shaped(v, " ".join(n + ":int" for n in LIMITS)) and all(0 < v[n] <= LIMITS[n] for n in v)}

def genesis_valid(body):
    """Section 4, for the parsed body of entry (0, 0)."""
    p = body["payload"] if body and body["actor_id"] == "system" else None
    if not shaped(p, "chains:int limits:limits nonce:hex32 origin:str routing:str " + " ".join(
            purpose + "_key:key" for purpose in ("checkpoint", "commit", "governance"))):
        return False
    keys, odd = {n: key for n, key in p.items() if n.endswith("_key")}, lambda c: unicodedata.category(c) == "Cc"
    return (1 <= p["chains"] <= 1024 and p["routing"] == "sha256-case/v1" and 1 <= len(p["origin"].encode()) <= 200
            and not any(c.isspace() or c == "+" or odd(c) for c in p["origin"])
            and all(key["purpose"] + "_key" == name for name, key in keys.items())
            and all(len({key[member] for key in keys.values()}) == 3 for member in ("kid", "public_key")))

@functools.cache
def parse_stream(stream):
    """(kind, case, n) by section 5, kind None for any other stream. A stream that is not routed is its own case."""
    m = re.fullmatch("(ledger|heads|chain|order|delivery|sku)(?:-([0-9a-f]{32}))?(?:-([1-9][0-9]{0,17}))?", stream)
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
        self.trust, self.findings, self.keys, self.prices = trust, [], {}, {}
        self.tables = {table: defaultdict(list) for table in tables}
        for table, row in ((table, row) for table, rows in tables.items() for row in rows):
            chain = getattr(row, "chain", None)
            self.tables[table][chain if type(chain) is int and chain >= 0 else None].append(row)

    def report(self, code, chain, table, *key):
        if code:
            key = [k.hex() if type(k) is bytes else str(k) for k in key]
            self.findings.append({"code": code, "chain": chain, "place": "/".join([table, *key])})

    def run(self):
        self.ledger_id()
        for table, code in UNPLACED.items():
            for row in self.tables[table][None]:
                self.report(code, None, table)
        for number in sorted({c for rows in self.tables.values() for c in rows if c is not None and c >= self.count}):
            self.report("chain_unknown", number, "chains")
        self.chains = [self.read_chain(number) for number in range(self.count)]
        first, self.registry = self.chains[0], defaultdict(set)          # entry hashes of the registry by revision
        self.registry_damaged = first.lost or "ledger" in first.tainted_cases
        for row in first.rows:
            if row.damage != "entry_undecodable" and row.stream == "ledger":
                self.registry[row.revision] |= {row.entry_hash, row.hash}
        for chain in self.chains:
            self.judge_entries(chain)
        for chain in self.chains:
            if self.known:
                self.commits(chain)
                self.checkpoints(chain)
            if not chain.tainted:
                self.derived(chain)
        return self.findings

    def ledger_id(self):
        """Step 1."""
        rows, body = [row.ledger_id for row in self.tables["ledger"][None]], None
        genesis = next((e for e in self.tables["entries"][0] if e.idx == 0 and type(e.body) is bytes), None)
        self.genesis_judged = genesis is not None and b3("body", genesis.body) == genesis.body_hash
        if self.genesis_judged:
            self.id, body = sha(b"ledger/id/v1\0" + genesis.body), parse_body(genesis.body)
        else:
            self.id = self.trust or next((row for row in rows if row and len(row) == 32), ZEROS)
        if rows != [self.id] or self.trust and self.trust != self.id:
            self.report("ledger_id_mismatch", None, "ledger")
        self.known = genesis_valid(body)                                 # whether the registry is known
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
        """The chain of a stream, None if it is not of section 5."""
        kind, case, n = parse_stream(stream)
        if kind in ("order", "delivery", "sku"):
            n = int.from_bytes(sha(b"ledger/route/v1\0" + case[-32:].encode())[:8], "little") % self.count
        return n if kind else None

    def entry_missing(self, chain, end):
        chain.tainted = chain.lost = True
        self.report("entry_missing", chain.number, "entries", chain.end, end)

    def read_chain(self, number):
        """Step 2 as far as it needs no other chain: 2.1 to 2.6, 2.8, what is tainted; also the tree and the SKUs."""
        chain = SimpleNamespace(
            number=number, rows=ordered(self.tables["entries"][number], "idx"), end=0, at={}, streams={}, idem={}, skus={},
            tainted=False, lost=False, tainted_cases=set(), damaged=set(), documents={}, cases=defaultdict(
                lambda: SimpleNamespace(order=None, deliveries={}, licence=None, reissuing=False, private=set())))
        for row in chain.rows:
            placed = type(row.idx) is int and 0 <= row.idx < U63
            if placed and row.idx > chain.end:
                self.entry_missing(chain, row.idx)
            row.damage, row.parsed, row.stream_fault, row.allowed = self.damage(chain, row), None, None, False
            if placed:
                chain.end = row.idx + 1
                chain.at.setdefault(row.idx, row)
            body_only = row.damage == "body_hash_mismatch" and row.hash == row.entry_hash
            if not row.damage:
                row.parsed, last = parse_body(row.body), chain.streams.get(row.stream)
                want = (last.idx, last.revision + 1, last.entry_hash) if last else (None, 1, ZEROS)
                row.stream_fault = next((name + "_mismatch" for name, value in zip(
                    ("parent_index", "revision", "parent_hash"), want) if getattr(row, name) != value), None)
            else:
                chain.damaged.add(row.idx)
                chain.tainted |= not body_only
                chain.lost |= row.damage == "entry_undecodable"
                chain.tainted_cases.add(row.damage != "entry_undecodable" and case_of(row.stream))
            if not row.damage or body_only:
                chain.streams[row.stream] = row
        ends = [c.first_index + c.size for c in self.tables["commits"][number] if commit_decodable(c)
                and c.first_index <= chain.end < c.first_index + c.size]
        chain.known_end = max(ends, default=chain.end)
        if ends or not chain.rows:
            self.entry_missing(chain, chain.known_end)
        for row in chain.rows if chain.tainted else ():
            if row.stream_fault:
                row.stream_fault = chain.tainted_cases.add(case_of(row.stream))
        leaves = []
        while (row := chain.at.get(len(leaves))) and not (row.damage and chain.tainted):
            leaves.append(row.leaf)
        chain.levels, chain.intact = full_subtrees(leaves), min([len(leaves), *chain.damaged & chain.at.keys()])
        for row in chain.rows:
            if row.parsed and parse_stream(row.stream)[0] == "sku" and (not self.known or self.home(row.stream) == number):
                row.allowed = self.sku_event(chain.skus, row)
        return chain

    def damage(self, chain, row):
        """Steps 2.1 to 2.6; computes the header (section 2.3) and its hashes."""
        if not (decodable(row, "entries") and row.revision and row.schema_version == 1 and row.recorded_at_us <= SAFE
                and len(row.event_id) == 16 and re.fullmatch("[a-z][a-z0-9_.]{0,63}", row.event_type)):
            return "entry_undecodable"
        place = self.id + struct.pack("<IQ", row.chain, row.idx)
        row.header = b"".join((
            struct.pack("<H", 1), place, row.prev_hash, string(row.stream), struct.pack("<Q", row.revision),
            row.parent_hash, row.event_id, string(row.event_type),
            struct.pack("<Hq", row.schema_version, row.recorded_at_us), row.body_hash, row.body_sha256))
        row.hash, row.leaf = b3("entry", row.header), sha(b"\0" + row.header)
        event_id, last = bytearray(b3("event-id", place)[:16]), chain.at.get(row.idx - 1)
        event_id[6], event_id[8] = 0x80 | event_id[6] & 0x0f, 0x80 | event_id[8] & 0x3f
        linked = (row.prev_hash == ZEROS if row.idx == 0 else last is None or last.damage == "entry_undecodable"
                  or row.prev_hash == last.entry_hash or last.damage and row.prev_hash == last.hash)
        hashes = b3("body", row.body), sha(row.body)
        return ("entry_duplicate" if row.idx in chain.at
                else "body_hash_mismatch" if hashes != (row.body_hash, row.body_sha256)
                else "event_id_mismatch" if row.event_id != event_id
                else "prev_hash_mismatch" if not linked
                else "entry_hash_mismatch" if row.hash != row.entry_hash else None)

    def judge_entries(self, chain):
        """Steps 2.7 to 2.12 and 3, in chain order, folding the entries into the cases and the key registry."""
        for doc in self.tables["private_documents"][chain.number]:
            row = chain.at.get(doc.idx)
            if not row or doc.idx in chain.documents or row.parsed and "private_sha256" not in row.parsed:
                self.report("private_unexpected", chain.number, "private_documents", doc.idx)
            chain.documents.setdefault(doc.idx, doc.document)
        last = None
        for row in chain.rows:
            early = last and not last.code and not row.damage and row.recorded_at_us < last.recorded_at_us
            faults = [row.damage, early and "time_regression", row.stream_fault, row.damage or self.fold(chain, row)]
            row.code, doc = next(filter(None, faults), None), chain.documents.get(row.idx)
            if not row.code and row.idx in chain.documents and "private_sha256" in row.parsed and not (
                    type(doc) is bytes and len(doc) <= 65536 and sha(doc).hex() == row.parsed["private_sha256"]):
                row.code = "private_mismatch"
            if self.genesis_judged and not self.known and row is self.chains[0].at.get(0):
                row.code = "genesis_invalid"
            self.report(row.code, chain.number, "entries", row.idx)
            last = row

    def fold(self, chain, row):
        """Steps 2.9 to 2.11."""
        if not row.parsed:
            return "body_invalid"
        (kind, name, n), event, p = parse_stream(row.stream), row.event_type, row.parsed["payload"]
        registry, case = event.startswith("key."), chain.cases[name]
        if idem := row.parsed.get("meta", {}).get("idem"):
            chain.idem.setdefault(bytes.fromhex(idem), row.idx)
        if self.known and self.home(row.stream) != chain.number:
            return "routing_mismatch"
        if not kind or not self.known and (registry or kind in ("ledger", "heads")):
            return None
        if registry:
            allowed = kind == "ledger" and self.registry_event(row, p)
        elif row.idx == 0:                                               # the genesis payload was judged in step 1
            allowed = ((kind, event) == ("ledger", "ledger.created") if chain.number == 0 else
                       (kind, event, p, row.parsed["actor_id"]) == ("chain", "chain.created", {"chain": n}, "system"))
        elif kind == "heads":
            allowed = event == "chain.heads" and self.heads_event(row, p)
        else:
            allowed = row.allowed if kind == "sku" else self.case_event(case, row, kind, name, n, p)
        if "private_sha256" in row.parsed:
            case.private.add(row.idx)
        if not allowed and name not in chain.tainted_cases:
            return "registry_invalid" if registry else "illegal_transition"

    def sku_event(self, skus, row):
        event, p, sku = row.event_type, row.parsed["payload"], skus.get(row.stream, {"status": None})
        if not (event.startswith("sku.") and event in EVENTS and shaped(p, EVENTS[event][0])
                and sku_stream(p["sku_id"]) == row.stream and (sku["status"] == "listed") == (event == "sku.withdrawn")):
            return False
        if event == "sku.listed":
            sku = skus[row.stream] = {**p, **p["price"]}
            self.prices[row.stream, row.revision] = p["price"]
        sku.update(status=EVENTS[event][3], revision=row.revision)
        return True

    def case_event(self, case, row, kind, name, n, p):
        """Section 9 for the streams of an order and its deliveries. An event that is not allowed changes nothing."""
        event, order, again = row.event_type, case.order, "reissue_of" in p
        form, statuses, currents, reached = EVENTS.get(event, ("", "", "", ""))
        family = re.sub("payment|license|subject", "order", event.split(".")[0])
        if event not in EVENTS or family != kind or not shaped(p, form) or (not order) != (event == "order.created"):
            return False
        status, count = (order["status"], order["deliveries"]) if order else (None, 0)
        current, money = case.deliveries.get(count, {"status": None}), p.get("total", p.get("refund", {}))
        equal = {member: order and order[member] == money[member] for member in money}
        if (case.reissuing and not again or statuses and status not in statuses.split()
                or currents and current["status"] not in currents.split()
                or kind == "delivery" and n != count + (event == "delivery.requested")
                or ("key_fingerprint" in p) != ("buyer-managed" in (p.get("mode"), p.get("delivery_mode")))):
            return False
        if not {"order.created": lambda: p["order_id"] == name and self.price_agrees(p),
                "payment.captured": lambda: all(equal.values()),
                "payment.mismatch": lambda: not all(equal.values()),
                "license.issued": lambda: p["license_id"] == "license-" + name,
                "delivery.requested": lambda: (p["delivery_id"], p["order_id"], p["n"]) == (row.stream, name, n) and (
                    case.reissuing and p["reissue_of"] == n - 1 if again else status == "licensed" and n == 1),
                "delivery.ready": lambda: p["proof_id"] == f"proof-{name}-{n}",
                "delivery.reissued": lambda: p["next"] == n + 1,
                "order.finalized": lambda: p["delivery"] == count,
                "order.refunded": lambda: equal["currency"] and equal["scale"] and (
                    order["refunded"] + money["amount"] <= order["amount"]),
                "subject.erased": lambda: set(p["entries"]) <= case.private and p["entries"] == sorted(set(p["entries"])),
                }.get(event, lambda: True)():
            return False
        if event == "order.created":
            order = case.order = {**p, **money, "refunded": 0, "deliveries": 0, "created_at_us": row.recorded_at_us}
        elif event == "order.settled":
            order["ledger_proof_id"] = p["ledger_proof_id"]
        elif event == "license.issued":
            case.licence = {**order, **p, "idx": row.idx}
        elif event == "order.refunded":
            order["refunded"] += money["amount"]
            reached = "refunded" if order["refunded"] == order["amount"] else ""
        elif event == "delivery.requested":
            current = case.deliveries[n] = {**p, "downloads": 0}
            order["deliveries"] = n
        elif event in ("delivery.encrypted", "delivery.ready"):
            current.update(p, idx=row.idx)
        elif event == "delivery.downloaded":
            current["downloads"] += 1
        case.reissuing, target = event == "delivery.reissued", order if kind == "order" else current
        target.update(status=reached or target["status"], revision=row.revision, updated_at_us=row.recorded_at_us)
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
        """Section 6 for the entries after the first; that they end their commit is judged with the commits."""
        action, (kind, form) = p.get("action"), ACTIONS.get(row.event_type, ("", ""))
        possession = " possession_signature:hex128" if "key:key" in form else ""
        if not (kind and shaped(action, form) and action["type"] == kind and shaped(
                p, "action:dict governance_kid:kid governance_signature:hex128" + possession)):
            return False
        message = b"ledger/govern/v1\0" + self.id + struct.pack("<Q", row.revision) + row.parent_hash + jcs(action)
        signers, new = [(self.keys.get(p["governance_kid"]), p["governance_signature"])], action.get("key")
        old, cut = self.keys.get(action.get("old_kid", action.get("kid"))), action.get("cut", [])
        since = action.get("compromised_since", cut)
        governor = signers[0][0]
        if not governor or governor.purpose != "governance" or governor.retired or not verifies(
                governor.public, bytes.fromhex(p["governance_signature"]), message):
            return False
        if new and (new["kid"] in self.keys or new["public_key"] in [key.public for key in self.keys.values()]
                    or not verifies(new["public_key"], bytes.fromhex(p["possession_signature"]), message)
                    or old and old.purpose != new["purpose"]):
            return False
        if kind != "enrol":
            if (not old or old.retired or not len(cut) == len(since) == self.count or cut[0] != row.idx + 1
                    or any(size > chain.end and not chain.tainted for chain, size in zip(self.chains, cut))
                    or any(start > size for start, size in zip(since, cut))):
                return False
            old.retired, old.cut = row.revision, cut
        if new:
            self.enrol(new, row.revision)
        return True

    def commits(self, chain):
        """Step 4."""
        number, floor, seen, signatures = chain.number, 0, set(), defaultdict(dict)
        rows = ordered(self.tables["commits"][number], "first_index")
        for c in rows:
            c.code = None if commit_decodable(c) and c.first_index not in seen else "commit_undecodable"
            c.end = None if c.code else c.first_index + c.size
            seen.add(c.first_index)
        for s in sorted(self.tables["commit_signatures"][number], key=lambda s: str(s.kid)):
            if s.first_index not in seen or s.kid in signatures[s.first_index]:
                self.report("commit_signature_orphan", number, "commit_signatures", s.first_index, s.kid)
            signatures[s.first_index].setdefault(s.kid, s)
        line = [SimpleNamespace(end=0, code=None), *rows, SimpleNamespace(first_index=chain.known_end, end=0, code=None)]
        for before, c, after in zip(line, rows, line[2:]):
            if not c.code and c.end > chain.known_end:
                c.code = "commit_tiling"
            entries = [] if c.code else [chain.at.get(i) for i in range(c.first_index, c.end)]
            if entries and all(e and not e.damage for e in entries):     # otherwise unjudged, counting as authentic
                signed = signatures[c.first_index].values()
                faults = (f for f in (self.position(c, entries, floor), *(self.signature(c, s, entries) for s in signed)) if f)
                fault, total = next(faults, None), sum(
                    len(e.header) + len(e.body) + len(chain.documents.get(e.idx) or b"") for e in entries)
                loose = before.end not in (None, c.first_index) or after.end is not None and after.first_index != c.end
                c.code = ("commit_tiling" if fault and loose else "commit_unsigned" if not signed
                          else "commit_undecodable" if len(signed) > 4 else fault
                          or ("commit_too_large" if total > LIMITS["commit_bytes"] else None))
                for e in entries[:-1] if not c.code else ():             # a registry entry is the last of its commit
                    if e.stream == "ledger" and e.event_type.startswith("key.") and not e.code:
                        self.report("registry_invalid", number, "entries", e.idx)
            floor = floor if c.code else c.registry_size
            self.report(c.code, number, "commits", c.first_index)
        for a, b in zip(line, line[1:]):
            if not a.code and not b.code and a.end != b.first_index:
                self.report("commit_tiling", number, "commits", a.end)

    def position(self, c, entries, floor):
        """Step 4.4."""
        size, heads = c.registry_size, self.registry.get(c.registry_size)
        revisions = [e.revision for e in entries if c.chain == 0 and e.stream == "ledger"]
        if c.chain == c.first_index == 0:
            good = (size, c.registry_head) == (0, ZEROS)
        else:
            good = size > 0 and (c.registry_head in heads if heads else self.chains[0].tainted)
        return None if good and floor <= size < min(revisions, default=U63) else "registry_position_mismatch"

    def signature(self, c, s, entries):
        """Steps 4.5 and 4.6."""
        key = self.keys.get(s.kid)
        if not key:
            return None if self.registry_damaged else "kid_unknown"
        if key.purpose != "commit" or s.alg != 1:
            return "kid_wrong_purpose" if key.purpose != "commit" else "algorithm_mismatch"
        if key.enrolled > max(1, c.registry_size) or key.retired and (
                key.retired <= c.registry_size or c.end > key.cut[c.chain]):
            return "kid_not_valid"
        statement = b"".join((
            b"ledger/commit/v1\0", self.id, struct.pack("<IQI", c.chain, c.first_index, c.size),
            tree_root(full_subtrees([e.leaf for e in entries]), c.size), entries[-1].hash,
            struct.pack("<Q", c.registry_size), c.registry_head, b"\1", string(s.kid)))
        good = type(s.signature) is bytes and verifies(key.public, s.signature, statement)
        return None if good else "commit_signature_invalid"

    def checkpoints(self, chain):
        """Step 5."""
        seen = set()
        for c in ordered(self.tables["checkpoints"][chain.number], "size"):
            usable = decodable(c, "checkpoints") and c.size not in seen
            seen.add(c.size)
            self.report(self.checkpoint(chain, c) if usable else "checkpoint_undecodable", chain.number, "checkpoints", c.size)

    def checkpoint(self, chain, c):
        origin, signatures = f"{self.base}/{self.id.hex()[:16]}/{chain.number}", []
        if c.note is not None:                                           # section 7
            m = re.fullmatch("((.+)\n(.+)\n(.+)\n)\n((?:— [^ \n]+ [A-Za-z0-9+/]+=*\n)+)", c.note)
            try:
                root, lines = base64.b64decode(m[4], validate=True), [line.split(" ")[1:] for line in m[5].splitlines()]
                signatures = [(name, base64.b64decode(blob, validate=True)) for name, blob in lines]
                texts = [m[4], *(blob for _, blob in lines)]
                canonical = [base64.b64encode(b).decode() for b in (root, *(b for _, b in signatures))] == texts
            except (TypeError, ValueError):
                return "checkpoint_undecodable"
            if not canonical or len(root) != 32 or not re.fullmatch("0|[1-9][0-9]{0,18}", m[3]):
                return "checkpoint_undecodable"
            if (m[2], int(m[3]), root) != (origin, c.size, c.root):
                return "checkpoint_mismatch"
        if c.size > chain.known_end:
            return "checkpoint_beyond_tail"
        if c.size <= chain.intact and c.root != tree_root(chain.levels, c.size):
            return "checkpoint_root_mismatch"
        if c.note is None:
            return None
        known = [(key, blob[4:]) for key in self.keys.values() for name, blob in signatures
                 if key.purpose == "checkpoint" and (name, blob[:4]) == (
                     origin, sha(origin.encode() + b"\n\1" + bytes.fromhex(key.public))[:4])]
        if not known:
            return None if self.registry_damaged else "kid_unknown"
        if any(key.retired and c.size > key.cut[c.chain] for key, _ in known):
            return "kid_not_valid"
        good = all(verifies(key.public, signature, m[1].encode()) for key, signature in known)
        return None if good else "checkpoint_signature_invalid"

    def derived(self, chain):
        """Step 6: every derived table, recomputed."""
        size, levels, cases = chain.end, chain.levels, chain.cases.values()
        ids, deliveries = [chain.at[i].event_id[:8] for i in range(size)], [d for c in cases for d in c.deliveries.values()]
        tiles = {(level, n): b"".join(levels[8 * level][256 * n:256 * n + 256])
                 for level in range(8) for n in range(size >> 8 * level + 8)}
        want = {
            "chain_heads": [{"size": size, "head_hash": chain.at[size - 1].hash,
                             "compact_range": b"".join(compact_range(levels, size))}],
            "stream_heads": [{**vars(row), "head_hash": row.hash, "head_index": row.idx} for row in chain.streams.values()],
            "tiles": [{"level": level, "n": n, "hashes": hashes} for (level, n), hashes in tiles.items()],
            "event_id_runs": [{"run": run, "ids": b"".join(sorted(
                ids[4096 * run + i] + struct.pack("<H", i) for i in range(4096)))} for run in range(size // 4096)],
            "cursors": [{"projection": name, "size": size} for name in PROJECTIONS],
            "orders": [case.order for case in cases if case.order], "deliveries": deliveries,
            "licences": [case.licence for case in cases if case.licence],
            "delivery_proofs": [d for d in deliveries if "proof_id" in d], "skus": chain.skus.values(),
            "idempotency": [{"key": key, "idx": idx} for key, idx in chain.idem.items()]}

        def judged(table, key):
            name = key[1] if len(key) > 1 and type(key[1]) is str else ""
            if table == "tiles":
                return key[1:] not in tiles or all(d >> 8 * key[1] + 8 != key[2] for d in chain.damaged)
            if table in ("chain_heads", "event_id_runs", "cursors", "idempotency"):
                return table != "idempotency" or not chain.tainted_cases
            hexes = re.findall("[0-9a-f]{32}", name)
            case = sku_stream(name) if table == "skus" else case_of(name) if table == "stream_heads" else "".join(hexes)
            return case not in chain.tainted_cases
        for table, code in DERIVED.items():
            columns, sides = COLUMNS[table], defaultdict(lambda: ([], []))
            for side, rows in enumerate((want[table], map(vars, self.tables[table][chain.number]))):
                for row in rows:
                    values = tuple({**row, "chain": chain.number}.get(c) for c in columns)
                    sides[values[:{"chain_heads": 1, "tiles": 3}.get(table, 2)]][side].append(values)
            for key in sorted(sides, key=repr):
                if sides[key][0] != sides[key][1] and judged(table, key):
                    self.report(code, chain.number, table, *key)

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trust", type=bytes.fromhex, default=b"", help="the ledger id, known from elsewhere")
    parser.add_argument("--check", action="store_true", help="exit 3 if a dump's verdict is not the one it expects")
    parser.add_argument("source", nargs="+", help="a ledger directory or a dump (.json)")
    args, statuses = parser.parse_args(), set()
    for source in args.source:
        expect, findings, status = None, [], 2
        try:
            tables, trust, expect = load(source)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, sqlite3.Error) as error:
            print(f"{source}: cannot be read: {error!r}", file=sys.stderr)
        else:
            findings = Verifier(tables, args.trust or trust).run()
            status = 1 if findings else 0 if args.trust or trust else 2
        print(json.dumps({"source": source, "exit": status, "findings": findings}))
        verdict = {"exit": status, "findings": sorted(finding["code"] for finding in findings)}
        if not args.check or not source.endswith(".json"):
            statuses.add(status)
        elif verdict != expect:
            statuses.add(3)
            print(f"DIFFERENT: {source} expects {json.dumps(expect)}, found {json.dumps(verdict)}", file=sys.stderr)
    sys.exit(next((status for status in (3, 1, 2) if status in statuses), 0))

if __name__ == "__main__":
    main()
