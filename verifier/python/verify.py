"""Second, independent verifier of ledger format 1, from FORMAT.md alone; "section" and "step" are its words:
"step 2.7" is point 7 of step 2 of section 10. The encodings and the forms of the events are in format1.py.

    verify.py [--trust LEDGER_ID_HEX] [--check] SOURCE...        SOURCE: a ledger directory, a dump (.json), a copy or an archive
"""
import argparse, base64, json, re, struct, sys
from collections import defaultdict
from format1 import *

class Verifier:
    def __init__(self, tables, trust):
        self.trust, self.findings, self.keys, self.listings, self.open = trust, [], {}, {}, False
        self.adopted = None, 0
        self.tables = {table: defaultdict(list) for table in tables}
        for table, row in ((table, row) for table, rows in tables.items() for row in rows):
            placed = type(chain := getattr(row, "chain", None)) is int and chain >= 0
            self.tables[table][chain if placed else None].append(row)

    def report(self, code, chain, table, *key):
        place = "/".join([table, *(k.hex() if type(k) is bytes else str(k) for k in key)])
        if code: self.findings.append({"code": code, "chain": chain, "place": place})

    def run(self):
        self.ledger_id()
        for table, code in UNPLACED.items():
            for row in self.tables[table][None]: self.report(code, None, table)
        numbers = {number for rows in self.tables.values() for number in rows if number is not None}
        for number in sorted(n for n in numbers if n >= self.count): self.report("chain_unknown", number, "chains")
        self.chains = [self.read_chain(number) for number in range(self.count)]
        first, self.registry = self.chains[0], defaultdict(set)    # entry hashes of the registry by revision
        self.registry_damaged = first.lost or "ledger" in first.tainted_cases
        for row in (r for r in first.rows if r.damage != "entry_undecodable" and r.stream == "ledger"):
            self.registry[row.revision] |= {row.entry_hash, row.hash}
        for chain in self.chains: self.judge_entries(chain)
        for chain in self.chains:
            if self.known:
                self.commits(chain)
                for c in ordered(self.tables["checkpoints"][chain.number], "size"):
                    self.report(self.checkpoint(chain, c), chain.number, "checkpoints", c.size)
            if not chain.tainted: self.derived(chain)
        return self.findings

    def ledger_id(self):  # step 1
        rows, body = [row.ledger_id for row in self.tables["ledger"][None]], None
        genesis = next((e for e in self.tables["entries"][0] if e.idx == 0 and type(e.body) is bytes), None)
        self.genesis_judged = genesis is not None and b3("body", genesis.body) == genesis.body_hash
        self.id = self.trust or next((row for row in rows if row and len(row) == 32), ZEROS)
        if self.genesis_judged:
            self.id, body = sha(b"ledger/id/v1\0" + genesis.body), parse_body(genesis.body)
        if rows != [self.id] or self.trust not in (b"", self.id): self.report("ledger_id_mismatch", None, "ledger")
        self.known = genesis_valid(body)                                 # whether the registry is known
        self.count = 1 + max((c for c in self.tables["entries"] if c is not None and c < 1024), default=0)
        if self.known:
            self.count, self.base = body["payload"]["chains"], body["payload"]["origin"]
            for name in "governance_key", "commit_key", "checkpoint_key": self.enrol(body["payload"][name], 1)

    def enrol(self, key, revision):
        self.keys[key["kid"]] = Record(
            public=key["public_key"], alg=key["alg"], purpose=key["purpose"], enrolled=revision, retired=None, cut=None)

    def home(self, stream):  # the chain of a stream, None if it is not of section 5
        kind, case, n = parse_stream(stream)
        if kind in ("order", "delivery", "sku"):
            n = int.from_bytes(sha(b"ledger/route/v1\0" + case[-32:].encode())[:8], "little") % self.count
        return n if kind else None

    def entry_missing(self, chain, end):
        chain.tainted = chain.lost = True
        chain.gaps.append(range(chain.end, end))
        self.report("entry_missing", chain.number, "entries", chain.end, end)

    def read_chain(self, number):  # what of step 2 needs no other chain (2.1 to 2.6, 2.8), taints, tree, SKUs
        chain = Record(
            number=number, rows=ordered(self.tables["entries"][number], "idx"), end=0, at={}, streams={},
            skus={}, gaps=[], tainted=False, lost=False, tainted_cases=set(), damaged=set(), documents={}, idem={},
            checkpoints=set(), cases=defaultdict(lambda: Record(order=None, deliveries={}, licence=None,
                                                                reissuing=False, private=set())))
        for row in chain.rows:
            placed = type(row.idx) is int and 0 <= row.idx < U63
            if placed and row.idx > chain.end: self.entry_missing(chain, row.idx)
            row.damage, row.parsed, row.stream_fault, row.signed = self.damage(chain, row), None, None, None
            if placed: chain.end, _ = row.idx + 1, chain.at.setdefault(row.idx, row)
            lost, body_only = row.damage == "entry_undecodable", row.damage == "body_hash_mismatch" and (
                row.hash == row.entry_hash)
            if row.damage:
                chain.damaged.add(row.idx)
                chain.tainted_cases.add(not lost and case_of(row.stream))
                chain.tainted, chain.lost = chain.tainted or not body_only, chain.lost or lost
            else:
                row.parsed, last = parse_body(row.body), chain.streams.get(row.stream)
                want = (last.idx, last.revision + 1, last.entry_hash) if last else (None, 1, ZEROS)
                row.stream_fault = next((name + "_mismatch" for name, value in zip(
                    ("parent_index", "revision", "parent_hash"), want) if getattr(row, name) != value), None)
            if not row.damage or body_only:
                row.first_index = chain.streams.get(row.stream, Record(first_index=row.idx)).first_index
                chain.streams[row.stream] = row
        chain.known_end = chain.end
        for c in filter(commit_decodable, ordered(self.tables["commits"][number], "first_index")):
            if c.first_index <= chain.known_end: chain.known_end = max(chain.known_end, c.first_index + c.size)
        if chain.known_end > chain.end or not chain.rows: self.entry_missing(chain, chain.known_end)
        leaves = []
        while (row := chain.at.get(len(leaves))) and not (row.damage and chain.tainted): leaves.append(row.leaf)
        chain.intact, chain.levels = min(len(leaves), *chain.damaged & chain.at.keys(), U63), full_subtrees(leaves)
        for row in chain.rows:
            if row.stream_fault and chain.tainted:                   # not reported, but it taints the case
                row.stream_fault = chain.tainted_cases.add(case_of(row.stream))
            if row.parsed and row.stream.startswith("sku-") and (not self.known or self.home(row.stream) == number):
                row.allowed = self.sku_event(chain.skus, row)
        return chain

    def damage(self, chain, row):  # steps 2.1 to 2.6; also computes the header (section 2.3) and its hashes
        if not decodable(row, "entries"): return "entry_undecodable"
        place, last = self.id + struct.pack("<IQ", row.chain, row.idx), chain.at.get(row.idx - 1)
        row.header = b"".join((
            struct.pack("<H", 1), place, row.prev_hash, string(row.stream), struct.pack("<Q", row.revision),
            row.parent_hash, row.event_id, string(row.event_type),
            struct.pack("<Hq", row.schema_version, row.recorded_at_us), row.body_hash, row.body_sha256))
        row.hash, row.leaf = b3("entry", row.header), sha(b"\0" + row.header)
        event_id = bytearray(b3("event-id", place)[:16])
        event_id[6], event_id[8] = 0x80 | event_id[6] & 0x0f, 0x80 | event_id[8] & 0x3f
        before = ZEROS if row.idx == 0 else last.entry_hash if last and not last.damage else row.prev_hash
        body_hashes = b3("body", row.body), sha(row.body)
        return ("entry_duplicate" if row.idx in chain.at
                else "body_hash_mismatch" if body_hashes != (row.body_hash, row.body_sha256)
                else "event_id_mismatch" if row.event_id != event_id
                else "prev_hash_mismatch" if row.prev_hash != before
                else "entry_hash_mismatch" if row.hash != row.entry_hash else None)

    def judge_entries(self, chain):  # steps 2.7 to 2.12 and 3, in chain order, folding the entries
        for doc in self.tables["private_documents"][chain.number]:
            row = chain.at.get(doc.idx)
            unnamed = (row.parsed and "private_sha256" not in row.parsed if row
                       else not any(doc.idx in gap for gap in chain.gaps))
            if unnamed or doc.idx in chain.documents:
                self.report("private_unexpected", chain.number, "private_documents", doc.idx)
            chain.documents.setdefault(doc.idx, doc.document)
        last = None
        for row in chain.rows:
            early = last and not last.code and not row.damage and row.recorded_at_us < last.recorded_at_us
            faulty = None if row.damage else self.fold(chain, row)
            row.code = row.damage or ("time_regression" if early else row.stream_fault or faulty)
            if not row.code and row.idx in chain.documents and "private_sha256" in row.parsed:
                doc, named = chain.documents[row.idx], row.parsed["private_sha256"]
                if type(doc) is not bytes or len(doc) > 65536 or sha(doc).hex() != named:
                    row.code = "private_mismatch"
            earlier = row.damage in ("entry_undecodable", "body_hash_mismatch")
            if self.genesis_judged and not self.known and row is self.chains[0].at.get(0) and not earlier:
                row.code = "genesis_invalid"
            self.report(row.code, chain.number, "entries", row.idx)
            last = row

    def fold(self, chain, row):  # steps 2.9 to 2.11
        if not row.parsed: return "body_invalid"
        (kind, name, n), event, p = parse_stream(row.stream), row.event_type, row.parsed["payload"]
        registry, case, idem = event.startswith("key."), chain.cases[name], row.parsed.get("meta", {}).get("idem")
        derived = idem and "order-" + sha(b"ledger/case/v1\0" + bytes.fromhex(idem))[:16].hex()
        if idem and (row.stream, row.revision) != (derived, 1): chain.idem.setdefault(bytes.fromhex(idem), row.idx)
        if self.known and self.home(row.stream) != chain.number: return "routing_mismatch"
        if not kind or not self.known and (registry or kind in ("ledger", "heads", "exports")): return None
        if registry: allowed = kind == "ledger" and self.registry_event(row, p)
        elif row.idx == 0:                                       # the genesis payload was judged in step 1
            made = (kind, event) if chain.number == 0 else (kind, event, row.parsed["actor_id"], p)
            allowed = made in (("ledger", "ledger.created"), ("chain", "chain.created", "system", {"chain": n}))
        elif kind == "legacy": allowed = event == "legacy.adopted" and self.adoption(row, p)
        elif kind == "exports": allowed = self.export(row, event, p)
        elif kind == "heads": allowed = event == "chain.heads" and self.heads_event(row, p)
        else: allowed = row.allowed if kind == "sku" else self.case_event(case, row, kind, name, n, p)
        if "private_sha256" in row.parsed: case.private.add(row.idx)
        if not allowed and not chain.tainted and (registry or name not in chain.tainted_cases):
            return "registry_invalid" if registry else "illegal_transition"

    def sku_event(self, skus, row):
        event, p = row.event_type, row.parsed["payload"]
        sku = skus.get(row.stream, {"status": None, "idx": row.idx})
        if (event not in ("sku.listed", "sku.withdrawn") or not shaped(p, EVENTS[event][0])
                or sku_stream(p["sku_id"]) != row.stream or (sku["status"] == "listed") != (event == "sku.withdrawn")):
            return False
        if event == "sku.listed":
            m = parse_manifest(p["manifest"]["text"]) if "manifest" in p else {}
            metadata = m.get("metadata", {})
            if m and ((m["id"], m["title"], m["author"]["id"]) != (p["sku_id"], p["title"], p.get("author_id"))
                      or metadata.get("price", p["price"]) != p["price"]):
                return False
            digests = m and [p["manifest"]["sha256"], sha(signature_bytes(m["manifest_signature"]["signature"])).hex()]
            self.listings[row.stream, row.revision] = p["price"], [[*digests, a["sha256"]] for a in m.get("artifacts", [])]
            sku = {
                "idx": sku["idx"], **p, **p["price"], "listed_index": row.idx, "version": m.get("version"),
                "tags": "\n".join(metadata.get("tags", [])) or None, "manifest_sha256": m and p["manifest"]["sha256"] or None,
            }
            row.signed = self.manifest(m) if m else None
        skus[row.stream] = {**sku, "status": EVENTS[event][3], "revision": row.revision}
        return True

    def case_event(self, case, row, kind, name, n, p):  # section 9, order and delivery streams
        event, order, again = row.event_type, case.order, "reissue_of" in p
        form, statuses, currents, reached = EVENTS.get(event, ("", "", "", ""))
        family = re.sub("payment|license|subject", "order", event.split(".")[0])
        if event not in EVENTS or family != kind or not shaped(p, form): return False
        if (not order) != (event == "order.created"): return False
        status, count = (order["status"], order["deliveries"]) if order else (None, 0)
        current, money = case.deliveries.get(count, {"status": None}), p.get("total", p.get("refund", {}))
        equal = {member: order and order[member] == money[member] for member in money}
        if (case.reissuing and not again or statuses and status not in statuses.split()
                or currents and current["status"] not in currents.split()
                or kind == "delivery" and n != count + (event == "delivery.requested")
                or ("key_fingerprint" in p) != ("buyer-managed" in (p.get("mode"), p.get("delivery_mode")))):
            return False
        if not {"order.created": lambda: p["order_id"] == name and self.listed(p, lambda price, _: price == p["total"]),
                "payment.captured": lambda: all(equal.values()),
                "payment.mismatch": lambda: not all(equal.values()),
                "license.issued": lambda: p["license_id"] == "license-" + name and self.licence_fits(order, name, p),
                "delivery.requested": lambda: (
                    p["mode"] == order["delivery_mode"]
                    and (p["delivery_id"], p["order_id"], p["n"]) == (row.stream, name, n)
                    and (case.reissuing and p["reissue_of"] == n - 1 if again else n == 1 and status == "licensed")),
                "delivery.ready": lambda: (
                    p["proof_id"] == f"proof-{name}-{n}" and self.delivery_proof_fits(order, name, case, n, p)),
                "delivery.reissued": lambda: p["next"] == n + 1,
                "order.finalized": lambda: p["delivery"] == count,
                "order.refunded": lambda: equal["currency"] and equal["scale"] and (
                    order["refunded"] + money["amount"] <= order["amount"]),
                "subject.erased": lambda: p["entries"] == sorted(set(p["entries"]) & case.private),
                }.get(event, lambda: True)(): return False
        if event == "order.created":
            order = case.order = {**p, **money, "idx": row.idx, "refunded": 0, "deliveries": 0,
                                  "created_at_us": row.recorded_at_us}
        elif event == "order.settled": order["ledger_proof_id"] = p["ledger_proof_id"]
        elif event == "license.issued":
            order["license_index"] = row.idx
            case.licence = {**order, **p, "idx": row.idx}
        elif event == "order.refunded":
            order["refunded"] += money["amount"]
            reached = "refunded" if order["refunded"] == order["amount"] else ""
        elif event == "delivery.requested":
            current = case.deliveries[n] = {**p, "idx": row.idx, "downloads": 0}
            order["deliveries"] = n
        elif event in ("delivery.encrypted", "delivery.ready"):
            current.update(p, proof_index=row.idx if "proof_id" in p else None)
        elif event == "delivery.downloaded": current["downloads"] += 1
        row.signed = self.signed(order, name, p)
        case.reissuing, target = event == "delivery.reissued", order if kind == "order" else current
        target.update(status=reached or status, revision=row.revision, updated_at_us=row.recorded_at_us)
        return True

    def licence_fits(self, order, name, p):
        if "license" not in p: return True
        licence = parse_licence(p["license"]["text"])
        expires_at = licence["scope"].get("expires_at")
        return (licence["order_id"], licence["sku_id"], licence["buyer_id"], expires_at and microseconds(expires_at)) == (
            name, order["sku_id"], order["buyer"], p.get("expires_at"))

    def delivery_proof_fits(self, order, name, case, n, p):  # section 19
        if "delivery_proof" not in p: return True
        proof, delivery = parse_delivery_proof(p["delivery_proof"]["text"]), case.deliveries[n]
        before = [case.deliveries[k]["proof_id"] for k in range(1, n) if "proof_id" in case.deliveries[k]]
        fingerprint = proof["encryption"]["key_fingerprint"]
        said = [proof["manifest_sha256"], proof["manifest_signature_id"], proof["artifact_sha256"]]
        if not self.listed(order, lambda _, artifacts: said in artifacts): return False
        return ([proof["delivery_id"], proof["sku_id"], proof["buyer_id"], proof["delivery_mode"], proof["ledger_proof_id"],
                 proof["artifact_sha256"], proof["ciphertext_sha256"], fingerprint, proof.get("supersedes")]
                == [f"delivery-{name}-{n}", order["sku_id"], order["buyer"], delivery["mode"], order.get("ledger_proof_id"),
                    delivery["artifact_sha256"], delivery["ciphertext_sha256"], delivery.get("key_fingerprint", fingerprint),
                    before[-1] if before else None])

    def signed(self, order, name, p):  # purpose, algorithm, kid, signature and message of a signed document (sections 15, 16)
        if "license" in p:
            terms = parse_licence(p["license"]["text"])
            signature = bytes.fromhex(terms.pop("signature"))
            own = bytes.fromhex(terms["ledger_id"]) == self.id
            message = b"ledger/licence/v1\0" + self.id + sha(jcs(terms)) if own else None
            return "licence", "ed25519", terms["signer_kid"], signature, message
        if "delivery_proof" in p:
            proof = parse_delivery_proof(p["delivery_proof"]["text"])
            signature, own = bytes.fromhex(proof.pop("signature")), bytes.fromhex(proof["ledger_id"]) == self.id
            message = b"ledger/delivery-proof/v1\0" + self.id + sha(jcs(proof)) if own else None
            return "delivery-proof", "ed25519", proof["signer_kid"], signature, message
        if "finance_signature" not in p: return None
        f = p["finance_signature"]
        statement = {"amount": order["amount"], "currency": order["currency"], "ledger_proof_id": p["ledger_proof_id"],
                     "order_id": name, "scale": order["scale"], "type": "finance-proof/v1"}
        return "finance", f["alg"], f["kid"], bytes.fromhex(f["signature"]), jcs(statement)

    def manifest(self, m):  # the same of a manifest (section 18)
        s = m.pop("manifest_signature")
        signature = signature_bytes(s["signature"])
        return "kernel", "ed25519" if len(signature) == 64 else "rsa-sha256", s["signer_kid"], signature, jcs(m)

    def document(self, c, e):  # step 4.7
        purpose, alg, kid, signature, message = e.signed
        key = self.keys.get(kid)
        if not key: return None if self.registry_damaged else "kid_unknown"
        if key.enrolled > max(1, c.registry_size): return "kid_unknown"
        if key.purpose != purpose: return "kid_wrong_purpose"
        if key.alg != alg: return "algorithm_mismatch"
        if key.retired and (key.retired <= c.registry_size or e.idx >= key.cut[c.chain]): return "kid_not_valid"
        good = message is not None and signed_by(alg, key.public, signature, message)
        return None if good else "document_signature_invalid"

    def listed(self, order, says):  # whether the listing that an order cites says something
        stream = sku_stream(order["sku_id"])
        chain = self.chains[self.home(stream)]
        listing = self.listings.get((stream, order["sku_revision"]))
        return not self.known or chain.tainted or stream in chain.tainted_cases or listing is not None and says(*listing)

    def adoption(self, row, p):  # section 14
        form = "count:from1 first:row format:str head_hash:hex64 last:row registry:signers root:hex64"
        if not shaped(p, form + " previous?:previous findings?:findings") or p["format"] != "audit-events/1": return False
        if p.get("previous") != self.adopted[0] or p["count"] <= self.adopted[1]: return False
        self.adopted = {"index": row.idx, "root": p["root"]}, p["count"]
        return True

    def export(self, row, event, p):  # section 17
        form = "batch:text1 env:text1 exported_at_us:index location:text1 private:bool ranges:list sequence:from1 tables?:true"
        done = " bytes:index files:index lock?:lock manifest_sha256:hex64 manifest_version?:text1"
        forms = {"audit_export.started": form, "audit_export.completed": form + done}
        if event == "ledger.restored":
            if not shaped(p, "location:text1 manifest_sha256:hex64 newest:heads sizes:ints"): return False
            sizes, chains = p["sizes"], [head["chain"] for head in p["newest"]]
            return (len(sizes) == self.count and sizes[0] <= row.idx and chains == sorted(set(chains))
                    and all(head["chain"] < len(sizes) and head["size"] <= sizes[head["chain"]] for head in p["newest"]))
        return (event in forms and shaped(p, forms[event]) and len(p["ranges"]) == self.count
                and all(map(TYPES["range"], p["ranges"])) and p["ranges"][0]["to"] <= row.idx)

    def heads_event(self, row, p):
        def right(chain, head):
            if not shaped(head, "chain:int head_hash:hex64 root:hex64 size:int"): return False
            size, most = head["size"], row.idx if chain.number == 0 else U63 if chain.tainted else chain.end
            if head["chain"] != chain.number or not 0 <= size <= most: return False
            if size > chain.intact: return True     # it covers a damaged or missing row: not judged
            last = chain.at[size - 1].hash if size else ZEROS
            return (head["root"], head["head_hash"]) == (tree_root(chain.levels, size).hex(), last.hex())
        return (shaped(p, "heads:list") and len(p["heads"]) == self.count
                and all(right(chain, head) for chain, head in zip(self.chains, p["heads"])))

    def registry_event(self, row, p):  # section 6, but for "is the last of its commit", which see in commits
        action, (kind, form) = p.get("action"), ACTIONS.get(row.event_type, ("", "type"))
        signed = "action:dict governance_kid:kid governance_signature:hex128"
        signed += " possession_signature:signature" if "key:key" in form else ""
        if not shaped(action, form) or action["type"] != kind or not shaped(p, signed): return False
        message = b"ledger/govern/v1\0" + self.id + struct.pack("<Q", row.revision) + row.parent_hash + jcs(action)
        governor, new, cut = self.keys.get(p["governance_kid"]), action.get("key"), action.get("cut")
        if not governor or governor.purpose != "governance" or governor.retired: return False
        if not verifies(governor.public, bytes.fromhex(p["governance_signature"]), message): return False
        if new:
            known = new["kid"] in self.keys or new["public_key"] in [k.public for k in self.keys.values()]
            signature = bytes.fromhex(p["possession_signature"])
            if known or not signed_by(new["alg"], new["public_key"], signature, message): return False
        old = self.keys.get(action.get("old_kid", action.get("kid")))
        if kind != "enrol":
            since = action.get("compromised_since", cut)
            if not old or old.retired or new and new["purpose"] != old.purpose: return False
            if not len(cut) == len(since) == self.count or cut[0] != row.idx + 1: return False
            if any(start > size or size > chain.end and not chain.tainted
                   for chain, start, size in zip(self.chains, since, cut)): return False
            self.open |= any(start < min(size, c.end) for c, start, size in zip(self.chains, since, cut))
            old.retired, old.cut = row.revision, cut
        if new: self.enrol(new, row.revision)
        return True

    def commits(self, chain):  # step 4
        number, floor, seen, signatures = chain.number, 0, set(), defaultdict(dict)
        rows = ordered(self.tables["commits"][number], "first_index")
        for c in rows:
            c.code = None if commit_decodable(c) and c.first_index not in seen else "commit_undecodable"
            c.end = None if c.code else c.first_index + c.size
            seen.add(c.first_index)
        ends, orphans = {c.end for c in rows} | {0}, set()               # where commits may leave a gap
        for s in sorted(self.tables["commit_signatures"][number], key=lambda s: str(s.kid)):
            lone = s.first_index not in seen and s.first_index not in ends
            if lone and s.first_index not in orphans or s.kid in signatures[s.first_index]:
                self.report("commit_signature_orphan", number, "commit_signatures", s.first_index, s.kid)
            orphans |= {s.first_index} if lone else set()
            if s.first_index in seen: signatures[s.first_index].setdefault(s.kid, s)
        line = [Record(end=0, code=None), *rows, Record(first_index=chain.known_end, end=0, code=None)]
        for before, c, after in zip(line, rows, line[2:]):
            if not c.code and c.end > chain.known_end: c.code = "commit_tiling"
            entries = [] if c.code else [chain.at.get(i) for i in range(c.first_index, c.end)]
            if entries and all(e and e.idx not in chain.damaged for e in entries):  # else it counts as authentic
                signed = signatures[c.first_index].values()
                total = sum(len(e.header) + len(e.body) + len(chain.documents.get(e.idx) or b"") for e in entries)
                fault = self.position(c, entries, floor) or next(filter(None, (
                    self.signature(c, s, entries) for s in signed)), None)
                loose = before.end not in (None, c.first_index) or after.end is not None and after.first_index != c.end
                c.code = ("commit_tiling" if fault and loose else "commit_unsigned" if not signed
                          else "commit_undecodable" if len(signed) > 4 else fault if fault
                          else "commit_too_large" if total > LIMITS["commit_bytes"] else None)
                for e in entries if not c.code and not chain.tainted else ():
                    if e.signed and not e.code and case_of(e.stream) not in chain.tainted_cases:
                        self.report(self.document(c, e), number, "entries", e.idx)
                for e in entries[:-1] if not c.code else ():     # a registry entry is the last of its commit
                    if e.stream == "ledger" and e.event_type.startswith("key.") and not e.code:
                        self.report("registry_invalid", number, "entries", e.idx)
            floor = floor if c.code else c.registry_size
            self.report(c.code, number, "commits", c.first_index)
        for a, b in zip(line, line[1:]):
            gap = not a.code and not b.code and a.end != b.first_index
            self.report("commit_tiling" if gap else None, number, "commits", a.end)

    def position(self, c, entries, floor):  # step 4.4
        size, heads = c.registry_size, self.registry.get(c.registry_size)
        good = size > 0 and (c.registry_head in heads if heads else self.chains[0].tainted)
        if c.chain == c.first_index == 0: good = (size, c.registry_head) == (0, ZEROS)
        revisions = [e.revision for e in entries if c.chain == 0 and e.stream == "ledger"]
        return None if good and floor <= size < min(revisions, default=U63) else "registry_position_mismatch"

    def signature(self, c, s, entries):  # steps 4.5 and 4.6
        key = self.keys.get(s.kid)
        if not key: return None if self.registry_damaged else "kid_unknown"
        if key.enrolled > max(1, c.registry_size): return "kid_unknown"
        if key.purpose != "commit": return "kid_wrong_purpose"
        if s.alg != 1: return "algorithm_mismatch"
        if key.retired and (key.retired <= c.registry_size or c.end > key.cut[c.chain]): return "kid_not_valid"
        root, last = tree_root(full_subtrees([e.leaf for e in entries]), c.size), entries[-1].hash
        statement = (b"ledger/commit/v1\0" + self.id + struct.pack("<IQI", c.chain, c.first_index, c.size) + root + last
                     + struct.pack("<Q", c.registry_size) + c.registry_head + b"\1" + string(s.kid))
        good = type(s.signature) is bytes and verifies(key.public, s.signature, statement)
        return None if good else "commit_signature_invalid"

    def checkpoint(self, chain, c):  # step 5 and section 7
        origin, signatures = f"{self.base}/{self.id.hex()[:16]}/{chain.number}", []
        if not decodable(c, "checkpoints") or c.size in chain.checkpoints: return "checkpoint_undecodable"
        chain.checkpoints.add(c.size)
        if c.note is not None:
            m = re.fullmatch(NOTE, c.note)
            try:
                texts = [m[4], *(line.split(" ")[2] for line in m[5].split("\n")[:-1])]
                root, *blobs = [base64.b64decode(text, validate=True) for text in texts]
                if [base64.b64encode(blob).decode() for blob in (root, *blobs)] != texts: raise ValueError
            except (TypeError, ValueError):
                return "checkpoint_undecodable"
            if (m[2], int(m[3]), root) != (origin, c.size, c.root): return "checkpoint_mismatch"
        if c.size > chain.known_end: return "checkpoint_beyond_tail"
        if c.size <= chain.intact and c.root != tree_root(chain.levels, c.size): return "checkpoint_root_mismatch"
        if c.note is None: return None
        for key in self.keys.values():
            keyid = sha(origin.encode() + b"\n\1" + bytes.fromhex(key.public))[:4]
            signatures += [(key, blob[4:]) for line, blob in zip(m[5].split("\n")[:-1], blobs)
                           if (line.split(" ")[1], blob[:4], key.purpose) == (origin, keyid, "checkpoint")]
        if not signatures: return None if self.registry_damaged else "kid_unknown"
        if any(key.retired and c.size > key.cut[c.chain] for key, _ in signatures): return "kid_not_valid"
        good = all(verifies(key.public, signature, m[1].encode()) for key, signature in signatures)
        return None if good else "checkpoint_signature_invalid"

    def derived(self, chain):  # step 6: every derived table, recomputed
        size, levels, cases = chain.end, chain.levels, chain.cases.values()
        deliveries = [delivery for case in cases for delivery in case.deliveries.values()]
        ids = [chain.at[i].event_id[:8] + struct.pack("<H", i % 4096) for i in range(size)]
        want = {
            "chain_heads": [{"size": size, "head_hash": chain.at[size - 1].hash,
                             "compact_range": b"".join(compact_range(levels, size))}],
            "stream_heads": [{**vars(r), "head_hash": r.hash, "head_index": r.idx} for r in chain.streams.values()],
            "tiles": [{"level": level, "n": n, "hashes": b"".join(levels[8 * level][256 * n:256 * n + 256])}
                      for level in range(8) for n in range(size >> 8 * level + 8)],
            "event_id_runs": [{"run": run, "ids": b"".join(sorted(ids[4096 * run:4096 * run + 4096]))}
                              for run in range(size // 4096)],
            "cursors": [{"projection": name, "size": size} for name in PROJECTIONS],
            "orders": [case.order for case in cases if case.order], "deliveries": deliveries,
            "licences": [case.licence for case in cases if case.licence],
            "delivery_proofs": [{**d, "idx": d["proof_index"]} for d in deliveries if "proof_id" in d],
            "skus": chain.skus.values(),
            "idempotency": [{"key": key, "idx": idx} for key, idx in chain.idem.items()]}

        def judged(table, row):
            if table == "idempotency": return not chain.tainted_cases
            if table not in (*PROJECTIONS, "stream_heads"): return True
            name = row[1 if table == "stream_heads" else 2]
            name = name if type(name) is str else ""
            return chain.tainted_cases.isdisjoint({
                sku_stream(name) if table == "skus" else case_of(name) if table == "stream_heads"
                else "".join(re.findall("[0-9a-f]{32}", name))})
        for table, code in DERIVED.items():
            width, sides = {"chain_heads": 1, "tiles": 3}.get(table, 2), defaultdict(lambda: ([], []))
            for side, rows in enumerate((want[table], map(vars, self.tables[table][chain.number]))):
                for row in rows:
                    values = tuple({**row, "chain": chain.number}.get(column) for column in COLUMNS[table])
                    sides[values[:width]][side].append(values)
            for key in sorted(sides, key=repr):
                expected, found = sides[key]
                wrong = expected != found and judged(table, (expected or found)[0])
                self.report(code if wrong else None, chain.number, table, *key)

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trust", type=bytes.fromhex, default=b"", help="the ledger id, from elsewhere")
    parser.add_argument("--check", action="store_true", help="exit 3 if a dump, or the file beside an export, expects another verdict")
    parser.add_argument("source", nargs="+", help="a ledger directory, a dump (.json), or the directory of a copy or an archive")
    args, statuses = parser.parse_args(), set()
    for source in args.source:
        expect, findings, status = None, [], 2
        export = (Path(source) / "manifest.json").exists() or (Path(source) / "marketplace").is_dir()
        try:
            if export and args.check:
                expect = json.loads(Path(source.rstrip("/") + ".expect.json").read_bytes())
                args.trust = bytes.fromhex(expect["trust"])
                expect = {"exit": expect["exit"], "findings": expect["findings"]}
            if export:
                from export1 import ExportVerifier
                verifier = ExportVerifier(source, args.trust)
            else:
                tables, trust, expect = load(source)
                verifier = Verifier(tables, args.trust or trust)
        except UNREADABLE as e:
            print(f"{source}: cannot be read: {e!r}", file=sys.stderr)
        else:
            findings = verifier.run()
            status = 1 if findings else 0 if verifier.trust and not verifier.open and (export or whole(source)) else 2
        print(json.dumps({"source": source, "exit": status, "findings": findings}))
        verdict = {"exit": status, "findings": sorted(finding["code"] for finding in findings)}
        if not args.check or not (export or source.endswith(".json")): statuses.add(status)
        elif verdict != expect:
            statuses.add(3)
            print(f"DIFFERENT: {source} expects {expect}, found {verdict}", file=sys.stderr)
    sys.exit(next((status for status in (3, 1, 2) if status in statuses), 0))

if __name__ == "__main__":
    main()
