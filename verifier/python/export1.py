"""Exports and archives of ledger format 1 (FORMAT.md section 13): lines become rows, and manifests are judged besides."""
import gzip, zlib
from collections import Counter
from verify import *

HEX, MANIFEST = "0123456789abcdef", "manifest.json"
LINES = {
    "commit": "chain:index first_index:index registry_head:hex64 registry_size:index signatures:signed size:index",
    "checkpoint": "chain:index note:str root:hex64 size:index",
    "private": "chain:index document:dict index:index"}
ENTRY = ("body:dict body_hash:hex64 body_sha256:hex64 chain:index entry_hash:hex64 event_id:hex32 event_type:str index:index "
         "parent_hash:hex64 parent_index:parent prev_hash:hex64 recorded_at_us:int revision:index schema_version:index stream:str")
TYPES.update({
    "parent": lambda v: v is None or TYPES["index"](v), "hexes": lambda v: type(v) is list and all(map(TYPES["hex64"], v)),
    "signed": lambda v: (type(v) is list and all(shaped(s, "alg:index kid:str signature:str") for s in v)
                         and [s["kid"] for s in v] == sorted(s["kid"] for s in v)
                         and all(re.fullmatch("(?:[0-9a-f]{2})*", s["signature"]) for s in v)),
    "keyed": lambda v: type(v) is dict and TYPES["key"]({n: x for n, x in v.items() if n != "retired_at_registry_size"})
             and TYPES["index"](v.get("retired_at_registry_size", 0)),
    "state": lambda v: shaped(v, "head:hex64 keys:list size:index") and all(map(TYPES["keyed"], v["keys"])),
    "named": lambda v: shaped(v, "manifest_sha256:hex64 name:text1 version?:text1"),
    "continued": lambda v: shaped(v, "checkpoint:text1 consistency:hexes root_before:hex64"),
    "kept": lambda v: shaped(v, "bytes:index name:text1 sha256:hex64 version?:text1"),
    "table": lambda v: (shaped(v, "bytes:index name:text1 rows:index sha256:hex64 version?:text1")
                        and re.fullmatch("entries-[0-9a-z-]*[.]parquet", v["name"]) is not None)})
TYPES.update({f"{name}s": lambda v, t=name: type(v) is list and all(map(TYPES[t], v))
              for name in ("continued", "kept", "table")})
BATCH = ("continues:continueds env:text1 location:text1 lock?:lock name:text1 pii_policy:text1 previous?:named registry:state "
         "sequence:from1 service:text1 stored:kepts tables?:tables")
RANGE = "chain:index checkpoints:index commits:index from:index last_hash:hex64 prev_hash:hex64 root:hex64 to:index"
FILE = "blake3:hex64 bytes:index chain:index from:index kind:str lines:index name:text1 sha256:hex64 to:index"

def manifest_of(bytes):
    """The manifest, if it is one."""
    m = canonical(bytes, 1 << 26)
    form = "batch?:dict chains:list exported_at_us:int files:list format:str ledger_id:hex64 origin:str private_withheld:bool"
    if not shaped(m, form + " signature?:dict tool:str") or m["format"] != "ledger-export/1": return None
    if not all(shaped(c, RANGE) for c in m["chains"]) or not all(shaped(f, FILE) for f in m["files"]): return None
    if "signature" in m and not shaped(m["signature"], "alg:str kid:kid signature:hex128"): return None
    batch = m.get("batch")
    fits = batch is None or (
        shaped(batch, BATCH) and ("previous" in batch) == (batch["sequence"] > 1) and batch.get("tables") != []
        and [s["name"] for s in batch["stored"]] == [f["name"] for f in m["files"]]
        and len(batch["continues"]) == len(m["chains"]))
    return m if fits else None

class Part:
    def __init__(self, directory):
        self.dir, bytes = directory, (directory / MANIFEST).read_bytes()
        self.manifest, self.digest = manifest_of(bytes), sha(bytes).hex()
        if self.manifest is None: raise ValueError(f"{directory}: no manifest of an export")
        self.batch = self.manifest.get("batch")
        self.tables = (self.batch or {}).get("tables", [])
        named = {f["name"] for f in [*self.manifest["files"], *self.tables]} | {MANIFEST}
        self.extra = [name for name in names(directory) if name not in named]

def names(directory): return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))

def parts_of(source, trust):
    """The parts of the trusted ledger, or of the only one, and what belongs to none."""
    top = Path(source) / "marketplace"
    if not top.is_dir(): return [Part(Path(source))], []
    parts, strangers = [], []
    for day in names(top):
        if not (top / day).is_dir(): strangers.append(day)
        for name in names(top / day) if (top / day).is_dir() else []:
            directory = top / day / name
            if not directory.is_dir(): strangers.append(f"{day}/{name}")
            if not (directory / MANIFEST).exists(): continue
            try:
                parts.append(part := Part(directory))
            except ValueError:
                strangers.append(f"{day}/{name}/{MANIFEST}")
                continue
            if not part.batch or part.batch["name"] != name: strangers.append(f"{day}/{name}")
    ids = {part.manifest["ledger_id"] for part in parts}
    if trust.hex() in ids: ids = {trust.hex()}
    if len(ids) != 1: raise ValueError("no batch, or batches of several ledgers")
    own = [part for part in parts if part.manifest["ledger_id"] in ids]
    number = lambda part: (part.batch["sequence"] if part.batch else 0, part.manifest["exported_at_us"], str(part.dir))
    return sorted(own, key=number), strangers

def consistent(old, new, path, before, after):
    """RFC 9162 section 2.1.4.2."""
    if old == 0 or old == new: return path == [] and (old == 0 or before == after)
    if old > new: return False
    path = [before, *path] if old & (old - 1) == 0 else path
    if not path: return False
    fn, sn = old - 1, new - 1
    while fn & 1: fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0: return False
        if fn & 1 or fn == sn:
            fr, sr = sha(b"\1" + c + fr), sha(b"\1" + c + sr)
            while not fn & 1 and fn: fn, sn = fn >> 1, sn >> 1
        else:
            sr = sha(b"\1" + sr + c)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and (fr, sr) == (before, after)

class ExportVerifier(Verifier):
    def __init__(self, source, trust):
        (self.parts, self.strangers), self.faults = parts_of(source, trust), []
        first, last = self.parts[0].manifest, self.parts[-1].manifest
        if not self.parts[0].batch and any(c["from"] for c in first["chains"]): raise ValueError("a batch by itself")
        self.files_and_manifests()
        tables = {table: [] for table in COLUMNS}
        tables["ledger"].append(Record(ledger_id=bytes.fromhex(last["ledger_id"])))
        seen = set()
        for part in self.parts:
            for f in part.manifest["files"]:
                if f["name"] not in seen: self.read(part, f, tables)
                seen.add(f["name"])
        super().__init__(tables, trust)

    def fault(self, code, chain, place): self.faults.append({"code": code, "chain": chain, "place": place})

    def files_and_manifests(self):
        for name in self.strangers: self.fault("export_file_unexpected", None, f"files/{name}")
        due, before = 1, None
        for part in self.parts:
            for name in part.extra: self.fault("export_file_unexpected", None, f"files/{name}")
            for table in part.tables:
                path = part.dir / table["name"]
                if not path.exists(): self.fault("export_file_missing", None, f"files/{table['name']}")
                elif (path.stat().st_size, sha(path.read_bytes()).hex()) != (table["bytes"], table["sha256"]):
                    self.fault("export_digest_mismatch", None, f"files/{table['name']}")
            due, before = self.continuity(part, due, before) if part.batch else (due, before)
            if not part.batch and len(self.parts) > 1: self.fault("export_manifest_mismatch", None, "manifest/batch")
        mismatch, seen = lambda chain, place: self.fault("export_manifest_mismatch", chain, place), set()
        for k, c in enumerate(self.parts[-1].manifest["chains"]):
            start = next((d for d in self.parts[0].manifest["chains"] if d["chain"] == c["chain"]), c)
            if c["chain"] != k or start["from"] == 0 and start["prev_hash"] != ZEROS.hex():
                mismatch(c["chain"], f"manifest/chains/{k}")
        chains = {c["chain"] for c in self.parts[-1].manifest["chains"]}
        for part in self.parts:
            for c in part.manifest["chains"]:
                at = c["from"]
                for f in part.manifest["files"]:
                    if (f["chain"], f["kind"]) != (c["chain"], "entries"): continue
                    if f["from"] != at or f["to"] < at: mismatch(c["chain"], f"manifest/files/{f['name']}")
                    at = f["to"]
                if at != c["to"]: mismatch(c["chain"], f"manifest/chains/{c['chain']}")
            for f in part.manifest["files"]:
                place = f["chain"], f["kind"], f["from"]
                if place in seen or f["chain"] not in chains: mismatch(f["chain"], f"manifest/files/{f['name']}")
                seen.add(place)

    def continuity(self, part, due, before):  # section 13.1; the next number that is due, and the part it follows
        batch, chains = part.batch, part.manifest["chains"]
        mismatch = lambda chain, what: self.fault("export_manifest_mismatch", chain, f"manifest/{batch['name']}/{what}")
        for c, continued in zip(chains, batch["continues"]):
            path, m = list(map(bytes.fromhex, continued["consistency"])), re.fullmatch(NOTE, continued["checkpoint"])
            roots = bytes.fromhex(continued["root_before"]), bytes.fromhex(c["root"])
            signed = m and (int(m[3]), base64.b64decode(m[4]).hex()) == (c["to"], c["root"])
            if not signed or not consistent(c["from"], c["to"], path, *roots): mismatch(c["chain"], f"continues/{c['chain']}")
        if batch["sequence"] < due:
            mismatch(None, "sequence")
            return due, before
        if batch["sequence"] > due:
            self.fault("export_batch_missing", None, f"batches/{due}")
        elif before:
            earlier = before.manifest["chains"]
            if (batch["previous"]["name"], batch["previous"]["manifest_sha256"]) != (before.batch["name"], before.digest):
                mismatch(None, "previous")
            if len(earlier) != len(chains): mismatch(None, "chains")
            for c, last, continued in zip(chains, earlier, batch["continues"]):
                if (c["from"], c["prev_hash"], continued["root_before"]) != (last["to"], last["last_hash"], last["root"]):
                    mismatch(c["chain"], f"chains/{c['chain']}")
        return batch["sequence"] + 1, part

    def read(self, part, f, tables):  # a file of lines
        path, chain, place = part.dir / f["name"], f["chain"], f"files/{f['name']}"
        if not path.exists(): return self.fault("export_file_missing", chain, place)
        text, whole = bytearray(), True
        try:
            with (gzip.open if f["name"].endswith(".gz") else open)(path, "rb") as file:
                while block := file.read(1 << 16): text += block
        except (EOFError, zlib.error, gzip.BadGzipFile):
            whole = False
        lines, last = bytes(text).split(b"\n"), None
        if lines[-1] == b"": lines.pop()
        elif whole: self.fault("export_line_undecodable", chain, f"{place}/{len(lines)}")
        for n, line in enumerate(lines, 1):
            if n == len(lines) and not text.endswith(b"\n"): break
            kind, row, at, after = self.line(line)
            if not kind:
                self.fault("export_line_undecodable", chain, f"{place}/{n}")
                continue
            here = (row["chain"], "private" if kind == "private" else "entries") == (chain, f["kind"])
            ahead = last is None or at >= last
            if not (ahead and here and f["from"] <= at <= f["to"]): self.fault("export_line_misplaced", chain, f"{place}/{n}")
            last = after if ahead else last
            self.rows(kind, row, tables)
        found = len(text), len(lines), blake3(bytes(text)).hexdigest(), sha(bytes(text)).hex()
        if not whole or found != (f["bytes"], f["lines"], f["blake3"], f["sha256"]):
            self.fault("export_digest_mismatch", chain, place)

    def line(self, line):  # kind, members, the place where it stands, the first place that may follow
        value = canonical(line, 69632)
        if shaped(value, ENTRY): return "entry", value, value["index"], value["index"] + 1
        for kind, form in LINES.items():
            if type(value) is dict and list(value) == [kind] and shaped(value[kind], form):
                row = value[kind]
                at = row[{"commit": "first_index", "checkpoint": "size", "private": "index"}[kind]]
                return kind, row, at, at + (kind == "private")
        return None, None, None, None

    def rows(self, kind, row, tables):
        unhex = bytes.fromhex
        if kind == "entry":
            values = {c: unhex(v) if type(v) is str and c not in ("stream", "event_type") else v for c, v in row.items()}
            tables["entries"].append(Record(**{**values, "idx": row["index"], "body": jcs(row["body"])}))
        elif kind == "private":
            tables["private_documents"].append(Record(chain=row["chain"], idx=row["index"], document=jcs(row["document"])))
        elif kind == "checkpoint":
            tables["checkpoints"].append(Record(**{**row, "root": unhex(row["root"])}))
        else:
            tables["commits"].append(Record(**{**row, "registry_head": unhex(row["registry_head"])}))
            tables["commit_signatures"] += [
                Record(chain=row["chain"], first_index=row["first_index"], kid=s["kid"], alg=s["alg"],
                       signature=unhex(s["signature"])) for s in row["signatures"]]

    def derived(self, chain): pass                                     # no part of an export

    def run(self):
        found = super().run()
        digests = [f for f in self.faults if f["code"] == "export_digest_mismatch"]
        faulty = {f["chain"] for f in [*self.faults, *found] if f not in digests}
        count = Counter()
        for part in self.parts:
            for c in part.manifest["chains"]:
                for what in "commits", "checkpoints": count[c["chain"], what] += c[what]
        last = {c["chain"]: c for c in self.parts[-1].manifest["chains"]}
        for chain in self.chains:
            if chain.number in faulty or chain.tainted: continue
            for part in self.parts[:-1]:
                for c in part.manifest["chains"]:
                    wrong = c["chain"] == chain.number and c["to"] and not self.reaches(chain, c)
                    if wrong: self.seam(found, chain, f"manifest/{part.batch['name'] if part.batch else ''}/chains")
            c = last.get(chain.number)
            rows = {what: len(self.tables[what][chain.number]) for what in ("commits", "checkpoints")}
            same = c and c["to"] == chain.end and self.reaches(chain, c) and all(
                rows[what] == count[chain.number, what] for what in rows)
            if not same and not any(f["chain"] == chain.number and f["code"] == "export_manifest_mismatch" for f in found):
                self.seam(found, chain, f"manifest/chains/{chain.number}")
        if self.known and not self.chains[0].tainted:
            for part in self.parts: self.signature_of(part, found)
        return self.faults + found

    def seam(self, found, chain, place):
        found.append({"code": "export_manifest_mismatch", "chain": chain.number, "place": place})

    def reaches(self, chain, c):
        last = chain.at.get(c["to"] - 1)
        return (last is not None and last.hash.hex() == c["last_hash"] and c["to"] <= chain.intact
                and tree_root(chain.levels, c["to"]).hex() == c["root"])

    def signature_of(self, part, found):  # section 13.1, the last point
        batch = part.batch
        if not batch: return
        def report(code, what): found.append({"code": code, "chain": None, "place": f"manifest/{batch['name']}/{what}"})
        size, keys = batch["registry"]["size"], []
        for kid, key in self.keys.items():
            if key.enrolled > size: continue
            keys.append({"alg": key.alg, "kid": kid, "public_key": key.public, "purpose": key.purpose})
            if key.retired and key.retired <= size: keys[-1]["retired_at_registry_size"] = key.retired
        heads = {h.hex() for h in self.registry.get(size, ())} if size else {ZEROS.hex()}
        if batch["registry"]["head"] not in heads or batch["registry"]["keys"] != keys:
            return report("registry_position_mismatch", "registry")
        for c, continued in zip(part.manifest["chains"], batch["continues"]):
            m, good = re.fullmatch(NOTE, continued["checkpoint"]), []
            if not m: continue
            for line in m[5].split("\n")[:-1]:
                name, blob = line.split(" ")[1], base64.b64decode(line.split(" ")[2])
                for key in self.keys.values():
                    keyid = sha(m[2].encode() + b"\n\1" + bytes.fromhex(key.public))[:4] if key.alg == "ed25519" else None
                    if (name, blob[:4], key.purpose) == (m[2], keyid, "checkpoint"):
                        good.append(verifies(key.public, blob[4:], m[1].encode()))
            if not good or not all(good): report("checkpoint_signature_invalid", f"continues/{c['chain']}")
        signature = part.manifest.get("signature")
        if not signature: return report("export_manifest_unsigned", "signature")
        key, end = self.keys.get(signature["kid"]), next(c["to"] for c in part.manifest["chains"] if c["chain"] == 0)
        unsigned = jcs({name: value for name, value in part.manifest.items() if name != "signature"})
        statement = b"ledger/export/v1\0" + self.id + sha(unsigned)
        if not key or key.enrolled > size: return report("kid_unknown", "signature")
        if key.purpose != "export": return report("kid_wrong_purpose", "signature")
        if key.retired and (key.retired <= size or end > key.cut[0]): return report("kid_not_valid", "signature")
        if not verifies(key.public, bytes.fromhex(signature["signature"]), statement):
            report("export_manifest_signature_invalid", "signature")
