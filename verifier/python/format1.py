"""The encodings of ledger format 1 (FORMAT.md sections 2 to 5 and 8), the forms of its events (sections 6 and 9)."""
import base64, functools, hashlib, json, re, sqlite3, struct, unicodedata
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace as Record
from urllib.parse import quote
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KINDS = {"": int, "+": str, "*": bytes, "#": bytes}                 # the marks of columns; # is a BLOB of 32 bytes
COLUMNS = {table.split()[0]: {c.rstrip("+*#"): c[len(c.rstrip("+*#")):] for c in table.split()[1:]} for table in """
    ledger ledger_id#;
    entries chain idx prev_hash# stream+ revision parent_hash# event_id* event_type+ schema_version recorded_at_us
        body_hash# body_sha256# entry_hash# parent_index body*;
    private_documents chain idx document*;
    commits chain first_index size registry_size registry_head#;
    commit_signatures chain first_index kid+ alg signature*;
    checkpoints chain size root# note+;
    chain_heads chain size head_hash# compact_range*;
    stream_heads chain stream+ revision head_hash# head_index first_index;
    tiles chain level n hashes*;
    event_id_runs chain run ids*;
    cursors projection+ chain size;
    orders chain idx order_id+ status+ sku_id+ buyer+ amount currency+ scale refunded delivery_mode+ key_fingerprint+
        ledger_proof_id+ license_index deliveries revision created_at_us updated_at_us;
    deliveries chain idx delivery_id+ order_id+ n status+ mode+ key_fingerprint+ artifact_sha256+ ciphertext_sha256+
        proof_id+ proof_index downloads revision updated_at_us;
    licences chain idx license_id+ order_id+ sku_id+ buyer+;
    delivery_proofs chain idx proof_id+ order_id+ delivery_id+;
    skus chain idx sku_id+ status+ title+ amount currency+ scale author_id+ version+ tags+ manifest_sha256+ listed_index revision;
    idempotency chain key* idx""".split(";")}
PROJECTIONS = ("orders", "deliveries", "licences", "delivery_proofs", "skus", "idempotency")
DERIVED = {"chain_heads": "chain_head_mismatch", "stream_heads": "stream_head_mismatch", "tiles": "tile_mismatch",
           "event_id_runs": "event_index_mismatch", "cursors": "cursor_mismatch",
           **dict.fromkeys(PROJECTIONS, "projection_mismatch")}
UNPLACED = {"entries": "entry_undecodable", "private_documents": "private_unexpected",     # rows whose chain is no
            "checkpoints": "checkpoint_undecodable", "commits": "commit_undecodable",       # number
            "commit_signatures": "commit_signature_orphan", **DERIVED}
# Section 9: event | payload (? may be absent; type text if none is named) | statuses of the order and |
# of the current delivery in which it is allowed | status reached. Empty: no condition, no change of status.
EVENTS = {row.split("|")[0].strip(): row.split("|")[1:] for row in """
    sku.listed|sku_id title price:M author_id? manifest?:manifest|||listed
    sku.withdrawn|sku_id reason?|||withdrawn
    order.created|order_id sku_id sku_revision:int buyer total:M delivery_mode:mode print|||pending
    payment.captured|provider payment_id total:M|pending payment_failed||paid
    payment.failed|provider payment_id reason|pending payment_failed||payment_failed
    payment.mismatch|provider payment_id total:M|pending payment_failed||
    order.settled|ledger_proof_id finance_proof?:doc finance_signature?:finance|paid||settled
    license.issued|license_id expires_at?:int license?:licence|settled||licensed
    delivery.requested|delivery_id order_id n:int mode:mode print reissue_of?:int|||requested
    delivery.encrypted|algorithm artifact_sha256:hex64 ciphertext_sha256:hex64|open|requested failed|encrypted
    delivery.ready|proof_id proof?:doc delivery_proof?:delivery_proof|open|encrypted|ready
    delivery.downloaded||finalized|ready downloaded|downloaded
    delivery.failed|reason||requested encrypted failed|failed
    delivery.reissued|reason next:int|open|ready downloaded failed|reissued
    order.finalized|delivery:int|licensed|ready|finalized
    order.cancelled|reason|pending payment_failed||cancelled
    order.refunded|refund:M reason|paid settled open||
    subject.erased|reason entries:ints|||""".replace("open|", "licensed finalized|").replace(
        "print", "key_fingerprint?:hex64").strip().splitlines()}
ACTIONS = {"key.enrolled": ("enrol", "type key:key justification?:text1"),       # section 6: event, type and form of A
           "key.rotated": ("rotate", "type key:key old_kid:kid cut:ints"),
           "key.revoked": ("revoke", "type kid:kid reason cut:ints compromised_since?:ints")}
PURPOSES = "governance commit checkpoint export licence delivery-proof finance kernel".split()
LIMITS = {"body_bytes": 65536, "commit_bytes": 16777216, "commit_entries": 4096, "private_bytes": 65536}
ZEROS, U63, SAFE, BAD = bytes(32), 2**63, 2**53 - 1, ()                        # BAD: a value of a wrong storage class
RANGES = {"schema_version": (1, 1), "recorded_at_us": (0, SAFE), "revision": (1, U63 - 1)}
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, sqlite3.Error)

def load(source):
    """The rows of all tables (section 8), and a dump's trusted id and expectation."""
    dump = json.loads(Path(source).read_bytes()) if source.endswith(".json") else {}
    def typed(mark, value):
        if dump and KINDS[mark] is bytes and type(value) is str and re.fullmatch("(?:[0-9a-f]{2})*", value):
            return bytes.fromhex(value)
        return value if value is None or type(value) is KINDS[mark] else BAD
    if dump:
        if dump["format"] != "ledger-dump/1": raise ValueError("not a dump of format 1")
        tables = dump["tables"]
    else:
        db = sqlite3.connect(f"file:{quote(source)}/ledger.db?mode=ro", uri=True, isolation_level=None)
        db.row_factory, db.text_factory = sqlite3.Row, lambda raw: raw.decode(errors="surrogateescape")
        db.execute("BEGIN")
        names = {row["name"] for row in db.execute("SELECT name FROM sqlite_master")} & COLUMNS.keys()
        tables = {name: [dict(row) for row in db.execute(f"SELECT * FROM {name}")] for name in names}
    rows = {table: [Record(**{c: typed(mark, row.get(c)) for c, mark in columns.items()})
                    for row in tables.get(table, ())] for table, columns in COLUMNS.items()}
    return rows, bytes.fromhex(dump.get("trust") or ""), dump.get("expect")

def whole(source):  # whether a database's tables and indexes agree, so that every query gives the rows that were read
    if source.endswith(".json"): return True
    db = sqlite3.connect(f"file:{quote(source)}/ledger.db?mode=ro", uri=True)
    try: return db.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",)
    except sqlite3.Error: return False

def decodable(row, table):
    """Whether each column of a row has its type, length and range."""
    def fits(name, mark, value):
        if value is None or value == BAD: return value is None and name in ("note", "parent_index")
        if KINDS[mark] is bytes: return len(value) == {"#": 32}.get(mark, 16 if name == "event_id" else len(value))
        if name in ("event_type", "note"): return name == "note" or matches("[a-z][a-z0-9_.]{0,63}")(value)
        least, most = RANGES.get(name, (0, U63 - 1))
        return value.isascii() if mark == "+" else least <= value <= most
    return all(fits(name, mark, getattr(row, name)) for name, mark in COLUMNS[table].items())

def commit_decodable(commit): return decodable(commit, "commits") and 1 <= commit.size <= 4096
def ordered(rows, name): return sorted(rows, key=lambda r: v if type(v := getattr(r, name)) is int else U63)
def sha(data): return hashlib.sha256(data).digest()
def b3(what, data): return blake3(data, derive_key_context="ledger 2026 v1 " + what).digest()
def string(text): return struct.pack("<Q", len(text)) + text.encode("ascii")
def jcs(value): return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

def full_subtrees(leaves):
    """RFC 6962: levels[k][i] is the root over leaves i * 2^k up to (i + 1) * 2^k."""
    levels = [leaves]
    while len(below := levels[-1]) > 1:
        levels.append([sha(b"\1" + below[i] + below[i + 1]) for i in range(0, len(below) - 1, 2)])
    return levels

def compact_range(levels, size):
    return [levels[k][(size >> k) - 1] for k in reversed(range(size.bit_length())) if size >> k & 1]

def tree_root(levels, size):
    parts = compact_range(levels, size)[::-1] or [sha(b"")]
    return functools.reduce(lambda right, left: sha(b"\1" + left + right), parts)

# The y coordinates (sign bit cleared) of all encodings, canonical or not, of the points of order 1, 2, 4, 8.
P, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
Y8 = 0x05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826
SMALL_ORDER = {0, 1, P - 1, P, P + 1, Y8, P - Y8}

def verifies(public_hex, signature, message):
    public, s = bytes.fromhex(public_hex), int.from_bytes(signature[32:], "little")
    points = [int.from_bytes(point, "little") % 2**255 for point in (public, signature[:32])]
    if len(signature) != 64 or s >= ORDER or any(y in SMALL_ORDER or y >= P for y in points): return False
    try:
        return Ed25519PublicKey.from_public_bytes(public).verify(signature, message) is None
    except (InvalidSignature, ValueError):
        return False

@functools.cache
def rsa_key(public_hex):
    """The RSA key of a SubjectPublicKeyInfo in its one encoding, as section 6 takes it, else None."""
    try:
        key = serialization.load_der_public_key(der := bytes.fromhex(public_hex))
        if not isinstance(key, rsa.RSAPublicKey): return None
        spki, numbers = serialization.PublicFormat.SubjectPublicKeyInfo, key.public_numbers()
        fits = (2048 <= numbers.n.bit_length() <= 8192 and numbers.n % 2 and numbers.e % 2 and 3 <= numbers.e < 2**33)
        return key if fits and key.public_bytes(serialization.Encoding.DER, spki) == der else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None

def signed_by(alg, public_hex, signature, message):
    if alg == "ed25519": return verifies(public_hex, signature, message)
    for pad in padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32), padding.PKCS1v15():
        try:
            rsa_key(public_hex).verify(signature, message, pad, hashes.SHA256())
            return True
        except (InvalidSignature, ValueError):
            pass
    return False

def parsed(text, most):
    """The value of at most so many bytes in any layout that section 2.1 takes, else None. Its names are in JCS order, so that
    printing it gives its canonical form."""
    def refuse(what): raise ValueError(what)
    def members(pairs):
        names = {name.encode("utf-16-be"): name for name, _ in pairs}
        return {names[n]: dict(pairs)[names[n]] for n in sorted(names)} if len(names) == len(pairs) else refuse("names")
    def integer(text):
        return int(text) if text != "-0" and len(text) <= 17 and abs(int(text)) <= SAFE else refuse("number")
    def plain(value, depth):
        if type(value) not in (dict, list): return type(value) is not str or "\0" not in value
        inside = [*value, *value.values()] if type(value) is dict else value
        return depth <= 32 and all(plain(v, depth + 1) for v in inside)
    try:
        value = json.loads(text.decode(), object_pairs_hook=members, parse_int=integer, parse_float=refuse,
                           parse_constant=refuse)
        return value if len(text) <= most and jcs(value) and plain(value, 1) else None
    except (ValueError, RecursionError):
        return None

def canonical(text, most):
    """The value of bytes in the one form of section 2.1, else None."""
    value = parsed(text, most)
    return value if value is not None and jcs(value) == text else None

def parse_body(body):
    value = canonical(body, 65536)
    return value if shaped(value, "actor_id:str payload:dict private_sha256?:hex64 meta?:meta") else None

def parse_licence(text):  # section 15
    licence = canonical(text.encode(errors="surrogatepass"), 32768)
    form = "license_id order_id:hex32 sku_id:text1 buyer_id:text1 scope:scope issued_at:time ledger_id:hex64 signer_kid:kid"
    fits = shaped(licence, form + " signature:hex128") and licence["license_id"] == "license-" + licence["order_id"]
    return licence if fits else None

def parse_delivery_proof(text):  # section 19
    proof = canonical(text.encode(errors="surrogatepass"), 32768)
    form = """artifact_bytes:index artifact_sha256:hex64 buyer_id:text1 ciphertext_bytes:index ciphertext_sha256:hex64 delivery_id
        delivery_mode:text1 encryption:encryption ledger_id:hex64 ledger_proof_id:text1 license_id manifest_sha256:hex64
        manifest_signature_id:hex64 order_id:hex32 proof_id signature:hex128 signer_kid:kid sku_id:text1 supersedes?:text1 ts:time"""
    if not shaped(proof, form): return None
    order, (kind, case, n) = proof["order_id"], parse_stream(proof["delivery_id"])
    fits = (kind, case, proof["license_id"], "key_source" in proof["encryption"]) == (
        "delivery", order, "license-" + order, proof["delivery_mode"] == "marketplace-managed")
    return proof if fits and proof["proof_id"] == f"proof-{order}-{n}" else None

def signature_bytes(text):
    """A signature in hex, or else in base64 of either alphabet, with its padding or less of it (section 18)."""
    if type(text) is not str or not text.isascii() or len(text) > 2048: return None
    plain = text.translate(str.maketrans("-_", "+/"))
    digits = plain.rstrip("=")
    found = [bytes.fromhex(text)] if re.fullmatch("(?:[0-9a-fA-F]{2})*", text) else []
    if re.fullmatch("[A-Za-z0-9+/]*", digits) and len(digits) % 4 != 1 and len(plain) - len(digits) <= -len(digits) % 4:
        raw = base64.b64decode(digits + "=" * (-len(digits) % 4))
        found += [raw] if base64.b64encode(raw).decode().rstrip("=") == digits else []
    return next((s for s in found if len(s) == 64 or 256 <= len(s) <= 1024), None)

def parse_manifest(text):
    """Section 18: a manifest that has what it needs, with its `manifest_signature` apart, else None."""
    m = parsed(text.encode(errors="surrogatepass"), 65536)
    form = "id:text1 title:text1 version:text1 checksum:text1 author:author license:license artifacts:artifacts"
    return m if has(m, form + " metadata?:metadata manifest_signature:manifest_signature") else None

def microseconds(text):  # RFC 3339 in the one form of section 15
    if type(text) is not str or not re.fullmatch("[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}[.][0-9]{6}Z", text): return None
    later = 400 if text.startswith("0000") else 0      # the calendar repeats, and datetime begins at the year 1
    try: time = datetime.fromisoformat(f"{int(text[:4]) + later:04}{text[4:-1]}")
    except ValueError: return None
    return (time - datetime(1970 + later, 1, 1)) // timedelta(microseconds=1)

@functools.cache
def members_of(form):
    pairs = [(member + ":text").split(":")[:2] for member in form.split()]
    return {n.rstrip("?"): TYPES[t] for n, t in pairs}, {n for n, _ in pairs if not n.endswith("?")}

def shaped(value, form):
    """Whether value is an object with exactly the members of the form, each of its type."""
    types, required = members_of(form)
    return (type(value) is dict and required <= value.keys() <= types.keys()
            and all(types[name](v) for name, v in value.items()))

def has(value, form):
    """The same, whatever else it has."""
    return type(value) is dict and shaped({n: v for n, v in value.items() if n in members_of(form)[0]}, form)

def matches(pattern): return lambda v: type(v) is str and re.fullmatch(pattern, v) is not None

TYPES = {
    **{t.__name__: lambda v, t=t: type(v) is t for t in (str, int, dict, list)},
    **{f"hex{n}": matches(f"[0-9a-f]{{{n}}}") for n in (32, 64, 128)},
    "text": lambda v: type(v) is str and len(v.encode()) <= 1024, "currency": matches("[A-Z]{3}"),
    "ints": lambda v: type(v) is list and all(type(i) is int and i >= 0 for i in v),
    "kid": matches("[a-z0-9][a-z0-9._-]{0,63}"), "mode": matches("buyer-managed|marketplace-managed"),
    "meta": lambda v: v == {} or shaped(v, "idem:hex64 request:hex64"),
    "M": lambda v: shaped(v, "amount:int currency:currency scale:int") and v["amount"] > 0 and 0 <= v["scale"] <= 4,
    "doc": lambda v: shaped(v, "sha256:hex64 text:str") and sha(v["text"].encode()).hex() == v["sha256"],
    "key": lambda v: (shaped(v, "alg:str kid:kid public_key:str purpose:str") and v["purpose"] in PURPOSES and (
        TYPES["hex64"](v["public_key"]) if v["alg"] == "ed25519"
        else v["alg"] == "rsa-sha256" and v["purpose"] in ("finance", "kernel")
        and re.fullmatch("(?:[0-9a-f]{2})+", v["public_key"]) is not None and rsa_key(v["public_key"]) is not None)),
    "signature": matches("[0-9a-f]{128}|(?:[0-9a-f]{2}){256,1024}"),
    "finance": lambda v: (shaped(v, "alg:str kid:kid signature:signature")
                          and v["alg"] == ("ed25519" if len(v["signature"]) == 128 else "rsa-sha256")),
    "time": lambda v: microseconds(v) is not None, "scope": lambda v: shaped(v, "type:text1 expires_at?:time"),
    "licence": lambda v: TYPES["doc"](v) and parse_licence(v["text"]) is not None,
    "wrapped": matches("(?:[0-9a-f]{2}){1,1024}"),
    "encryption": lambda v: shaped(v, "algorithm:text1 encrypted_key:wrapped key_algorithm:text1 key_fingerprint:hex64 "
                                       "key_source?:text1"),
    "delivery_proof": lambda v: TYPES["doc"](v) and parse_delivery_proof(v["text"]) is not None,
    "manifest": lambda v: TYPES["doc"](v) and parse_manifest(v["text"]) is not None,
    "author": lambda v: has(v, "id:text1 name:text1"), "license": lambda v: has(v, "type:text1"),
    "artifact": lambda v: has(v, "artifact_id:text1 artifact_url:text1 sha256:hex64"),
    "artifacts": lambda v: (type(v) is list and 1 <= len(v) <= 64 and all(map(TYPES["artifact"], v))
                            and len({a["artifact_id"] for a in v}) == len(v)),
    "tag": lambda v: type(v) is str and 1 <= len(v.encode()) <= 64 and not any(ord(c) < 32 or ord(c) == 127 for c in v),
    "tags": lambda v: type(v) is list and len(v) <= 32 and all(map(TYPES["tag"], v)),
    "metadata": lambda v: has(v, "tags?:tags price?:M"),
    "manifest_signature": lambda v: (has(v, "signer_kid:kid signature:str ts:text1")
                                     and signature_bytes(v["signature"]) is not None),
    "from1": lambda v: type(v) is int and v > 0, "index": lambda v: type(v) is int and v >= 0,
    "text1": lambda v: v != "" and TYPES["text"](v), "code": matches("[a-z][a-z0-9_]{0,63}"),
    "row": lambda v: shaped(v, "id?:text1 time_us?:int"), "previous": lambda v: shaped(v, "index:index root:hex64"),
    "count": lambda v: shaped(v, "code:code count:from1"), "bool": lambda v: type(v) is bool, "true": lambda v: v is True,
    "range": lambda v: shaped(v, "from:index to:index") and v["from"] <= v["to"],
    "head": lambda v: shaped(v, "chain:index checkpoint?:text1 root:hex64 size:index"),
    "heads": lambda v: type(v) is list and all(map(TYPES["head"], v)),
    "lost": lambda v: type(v) is list and all(shaped(item, "chain:index from:index to:index") for item in v),
    "succession": lambda v: succession_valid(v),
    "lock": lambda v: (shaped(v, "legal_hold:bool mode:str private_retain_until_us:int retain_until_us:int")
                       and v["mode"] in ("COMPLIANCE", "GOVERNANCE")),
    "findings": lambda v: (
        shaped(v, "counts:list report_sha256:hex64") and v["counts"] != [] and all(map(TYPES["count"], v["counts"]))
        and [c["code"] for c in v["counts"]] == sorted({c["code"] for c in v["counts"]})),
    "signers": lambda v: (shaped(v, "keys:list sha256:hex64")
                          and all(shaped(key, "fingerprint:hex64 kid:text1") for key in v["keys"])),
    "limits": lambda v: shaped(v, ":int ".join([*LIMITS, ""])) and all(0 < v[n] <= LIMITS[n] for n in v)}

NOTE = "((.+)\n(0|[1-9][0-9]{0,18})\n(.+)\n)\n((?:— [^ \n]+ [A-Za-z0-9+/]+=*\n)+)"

def origin_valid(origin):
    return (type(origin) is str and 1 <= len(origin.encode()) <= 200
            and not any(c.isspace() or c == "+" or unicodedata.category(c) == "Cc" for c in origin))

def succession_valid(v):
    """Section 4.1, but for what the signatures of checkpoints say."""
    if not shaped(v, "ledger_id:hex64 lost:lost newest:heads origin:text1 restored:heads statement:text1"): return False
    def fits(head):
        if "checkpoint" not in head: return True
        m = re.fullmatch(NOTE, head["checkpoint"])
        if not m or m[2] != f"{v['origin']}/{v['ledger_id'][:16]}/{head['chain']}": return False
        root = base64.b64decode(m[4]).hex()
        return int(m[3]) < head["size"] or (int(m[3]), root) == (head["size"], head["root"])
    restored, newest, chains = v["restored"], v["newest"], [head["chain"] for head in v["newest"]]
    lost = [{"chain": n["chain"], "from": restored[n["chain"]]["size"], "to": n["size"]}
            for n in newest if n["chain"] < len(restored)]
    return (origin_valid(v["origin"]) and restored != [] and [head["chain"] for head in restored] == list(range(len(restored)))
            and chains == sorted(set(chains)) and all(map(fits, restored + newest)) and lost == v["lost"]
            and len(lost) == len(newest) and all(item["from"] < item["to"] for item in lost))

def genesis_valid(body):
    """Section 4, for the parsed body of entry (0, 0)."""
    p = body["payload"] if body and body["actor_id"] == "system" else None
    form = "commit_key:key checkpoint_key:key governance_key:key"
    if not shaped(p, form + " chains:int limits:limits nonce:hex32 origin:str routing:str succeeds?:succession"): return False
    keys = {name: key for name, key in p.items() if name.endswith("_key")}
    return (1 <= p["chains"] <= 1024 and p["routing"] == "sha256-case/v1" and origin_valid(p["origin"])
            and all(key["purpose"] + "_key" == name for name, key in keys.items())
            and all(len({key[member] for key in keys.values()}) == 3 for member in ("kid", "public_key")))

@functools.cache
def parse_stream(stream):
    """(kind, case, n) by section 5, kind None for any other; the case of all but orders is the stream."""
    kinds = "(ledger|heads|legacy|exports|chain|order|delivery|sku)"
    m = re.fullmatch(kinds + "(?:-([0-9a-f]{32}))?(?:-([1-9][0-9]{0,17}))?", stream)
    kind, case, n = m.groups() if m else (None, None, None)
    if bool(case) != (kind in ("order", "delivery", "sku")) or bool(n) != (kind in ("chain", "delivery")): kind = None
    return kind, case if kind in ("order", "delivery") else stream, int(n or 0)

def case_of(stream): return parse_stream(stream)[1]
def sku_stream(sku_id): return "sku-" + sha(b"ledger/sku/v1\0" + sku_id.encode(errors="surrogatepass")).hex()[:32]
