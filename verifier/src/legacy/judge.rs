//! What can be said of a row alone: canonical form, hash, signature.

use std::collections::{BTreeMap, HashMap};

use ed25519_zebra::{Signature, VerificationKey, VerificationKeyBytes, batch};
use ledger_engine::adoption::{LegacyRow, RowTime};
use ledger_engine::hash::{Hash, from_hex, sha256};
use ledger_engine::json::INTEGER_MAX;
use ledger_engine::merkle::leaf_hash;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use sha2::{Digest, Sha256};

use super::canonical::{Fault, Scratch, canonicalise, canonicalise_exactly};
use super::row::{ROW_BYTES_MAX, RawRow, RowFault, Rows};
use super::signers::{Key, Refused, Signers, decode_base64};
use super::time::parse_time_us;
use crate::finding::Code;

/// Longer ids are cut and completed by their SHA-256.
const ID_BYTES_MAX: usize = 128;
/// Different event types that are counted apart, within one piece and in the report.
pub(crate) const TYPES_MAX: usize = 1000;
/// Stands for all event types beyond [`TYPES_MAX`].
pub(crate) const OTHER_TYPES: &str = "(others)";
const DAY_MS: i64 = 86_400_000;

/// What a row says of its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// It has none.
    Genesis,
    /// Its hash.
    To(Hash),
    /// The row cannot be read; there is a finding.
    Unreadable,
}

/// What the resolver needs of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    /// The hash recomputed; if that was impossible the stored one, or one that nobody can link to.
    pub(crate) name: Hash,
    /// The name is the recomputed hash. What a row only claims can repeat.
    pub(crate) recomputed: bool,
    /// The stored hash where it differs.
    pub(crate) alias: Option<Hash>,
    pub(crate) link: Link,
    /// Covers every field of the row (`row_digest`).
    pub(crate) digest: Hash,
    /// Covers every column as adoptions record it (FORMAT.md 14); zeros for a row that was not read.
    pub(crate) leaf: Hash,
    /// Microseconds since 1970, as far as the leaf has them as a number.
    pub(crate) time_us: Option<i64>,
}

/// What was seen of one kid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) signatures: u64,
    /// Rows outside the window, and the place of the first.
    pub(crate) outside: u64,
    pub(crate) first_outside: Option<u64>,
}

/// The judgement of some rows next to each other.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub(crate) rows: Vec<Judged>,
    /// One for each row; empty where it has none.
    pub(crate) ids: Vec<String>,
    /// By place in this piece.
    pub(crate) findings: Vec<(usize, Code, String)>,
    /// By place in the registry; rows are numbered as in the source.
    pub(crate) uses: BTreeMap<usize, Use>,
    pub(crate) types: BTreeMap<String, u64>,
    /// Days since 1970.
    pub(crate) days: BTreeMap<i64, u64>,
    pub(crate) hashes_compared: u64,
    /// Rows that were not read at all.
    pub(crate) unread: u64,
}

/// A row with what the hash covers.
struct Hashed {
    name: Hash,
    /// Not set if there is nothing that could have been signed.
    digest: Option<Hash>,
}

struct Judge<'a> {
    signers: Option<&'a Signers>,
    piece: Piece,
    scratch: Scratch,
    /// `canonical ‖ prev`.
    message: Vec<u8>,
    /// How much of the message is canonical; none if the payload has no canonical form.
    canonical: Option<usize>,
    /// The payload with exact numbers, and the leaf.
    exact: Vec<u8>,
    leaf: Vec<u8>,
    /// Ed25519 signatures to check, by place in the registry: row, signature, digest.
    batches: BTreeMap<usize, Vec<(usize, Signature, Hash)>>,
    types: HashMap<String, u64>,
}

/// Judges the rows `range` of `rows`, the first of which is row `first` of the source.
pub(crate) fn judge(rows: &dyn Rows, range: std::ops::Range<usize>, first: u64, signers: Option<&Signers>) -> Piece {
    let mut judge = Judge {
        signers,
        piece: Piece::default(),
        scratch: Scratch::default(),
        message: Vec::new(),
        canonical: None,
        exact: Vec::new(),
        leaf: Vec::new(),
        batches: BTreeMap::new(),
        types: HashMap::new(),
    };
    let from = range.start;
    for at in range {
        match rows.row(at) {
            Ok(row) => judge.row(&row, first + (at - from) as u64),
            Err(fault) => judge.unreadable(fault, first + (at - from) as u64),
        }
    }
    judge.check_batches();
    judge.piece.types = judge.types.into_iter().collect();
    judge.piece.findings.sort();
    judge.piece
}

/// A name that no row can link to without a finding: its row has one already.
fn no_name(place: u64) -> Hash {
    sha256(&[b"ledger/legacy-unreadable/v1\0", &place.to_le_bytes()])
}

/// Cuts a text from outside for use in a report.
pub(crate) fn shown(text: &str) -> String {
    const CHARS: usize = 80;
    let cut: String = text
        .chars()
        .take(CHARS)
        .flat_map(|c| if c.is_control() { c.escape_unicode().collect() } else { vec![c] })
        .collect();
    if text.chars().nth(CHARS).is_some() { cut + "…" } else { cut }
}

fn bounded_id(id: &str) -> String {
    let clean = !id.chars().any(char::is_control);
    if id.len() <= ID_BYTES_MAX && clean {
        return id.to_owned();
    }
    format!("{}#{}", shown(id), sha256(&[id.as_bytes()]))
}

impl Judge<'_> {
    fn report(&mut self, code: Code, evidence: String) {
        self.piece.findings.push((self.piece.rows.len(), code, evidence));
    }

    fn unreadable(&mut self, fault: RowFault, place: u64) {
        match fault {
            RowFault::TooLarge => {
                self.report(Code::LegacyRowTooLarge, format!("expected at most {ROW_BYTES_MAX} bytes"));
            }
            RowFault::Undecodable(why) => self.report(Code::LegacyRowUndecodable, why),
        }
        self.piece.ids.push(String::new());
        self.piece.unread += 1;
        let name = no_name(place);
        self.piece.rows.push(Judged {
            name,
            recomputed: false,
            alias: None,
            link: Link::Unreadable,
            digest: name,
            leaf: Hash::ZERO,
            time_us: None,
        });
    }

    fn row(&mut self, row: &RawRow<'_>, place: u64) {
        let time_us = row.time.as_deref().and_then(parse_time_us);
        let time = time_us.map(|us| us.div_euclid(1000));
        let link = match row.prev_hash.as_deref() {
            None | Some("") => Link::Genesis,
            Some(text) => Hash::from_hex(text).map_or(Link::Unreadable, Link::To),
        };
        let stored = row.hash.as_deref().and_then(Hash::from_hex);
        let hashed = match link {
            Link::Unreadable => {
                let text = shown(row.prev_hash.as_deref().unwrap_or_default());
                self.report(
                    Code::LegacyRowUndecodable,
                    format!("prev_hash: expected 64 lowercase hex characters, found {text:?}"),
                );
                // For the leaf alone.
                let _ = self.canonicalise(row);
                None
            }
            _ => self.hash(row, link),
        };
        let hashed = match hashed {
            Some(digest) => Hashed { name: digest, digest: Some(digest) },
            None => Hashed { name: stored.unwrap_or_else(|| no_name(place)), digest: None },
        };
        let mut alias = None;
        if let (Some(text), Some(digest)) = (row.hash.as_deref(), hashed.digest) {
            self.piece.hashes_compared += 1;
            if stored != Some(digest) {
                alias = stored;
                self.report(Code::LegacyHashMismatch, format!("expected hash {digest}, found {}", shown(text)));
            }
        }
        if self.signers.is_some() {
            self.signature(row, hashed.digest, time, place);
        }
        self.count(row, time);
        let time_us = time_us.filter(|us| us.unsigned_abs() <= INTEGER_MAX.unsigned_abs());
        let leaf = self.leaf(row, time_us);
        self.piece.ids.push(row.id.as_deref().map(bounded_id).unwrap_or_default());
        self.piece.rows.push(Judged {
            name: hashed.name,
            recomputed: hashed.digest.is_some(),
            alias,
            link,
            digest: row_digest(row, &hashed.name, time),
            leaf,
            time_us,
        });
    }

    /// Leaves the canonical payload in `message`.
    fn canonicalise(&mut self, row: &RawRow<'_>) -> Result<(), Fault> {
        self.message.clear();
        self.canonical = None;
        canonicalise(row.payload.as_deref().unwrap_or("null"), &mut self.message, &mut self.scratch)?;
        self.canonical = Some(self.message.len());
        Ok(())
    }

    /// The leaf of a row whose payload was canonicalised, or could not be.
    fn leaf(&mut self, row: &RawRow<'_>, time_us: Option<i64>) -> Hash {
        let given = row.payload.as_deref();
        let mut canonical = self.canonical.map(|length| &self.message[..length]);
        if let (Some(_), true, Some(text)) = (canonical, self.scratch.inexact, given) {
            self.exact.clear();
            // It had a canonical form a moment ago.
            canonical = canonicalise_exactly(text, &mut self.exact, &mut self.scratch).ok().map(|()| &self.exact[..]);
        }
        let canonical = canonical.and_then(|bytes| std::str::from_utf8(bytes).ok());
        let time = match (time_us, row.time.as_deref()) {
            (Some(us), _) => RowTime::Us(us),
            (None, Some(text)) => RowTime::Text(text),
            (None, None) => RowTime::Absent,
        };
        let columns = LegacyRow {
            id: row.id.as_deref(),
            actor: row.actor.as_deref(),
            event_type: row.event_type.as_deref(),
            payload: canonical.or(given).filter(|text| *text != "null"),
            time,
            hash: row.hash.as_deref(),
            prev_hash: row.prev_hash.as_deref(),
            signature: row.signature.as_deref(),
            kid: row.kid.as_deref(),
        };
        self.leaf.clear();
        columns.write_leaf(&mut self.leaf);
        leaf_hash(&self.leaf)
    }

    /// Leaves `canonical ‖ prev` in `message` and gives its SHA-256.
    fn hash(&mut self, row: &RawRow<'_>, link: Link) -> Option<Hash> {
        if let Err(fault) = self.canonicalise(row) {
            let code = match fault {
                Fault::Syntax(_) => Code::LegacyRowUndecodable,
                _ => Code::LegacyCanonicalImpossible,
            };
            self.report(code, format!("payload: {fault}"));
            return None;
        }
        if let Link::To(prev) = link {
            self.message.extend_from_slice(&prev.0);
        }
        Some(sha256(&[&self.message]))
    }

    fn signature(&mut self, row: &RawRow<'_>, digest: Option<Hash>, time: Option<i64>, place: u64) {
        let Some(signers) = self.signers else { return };
        let Some(text) = row.signature.as_deref().filter(|s| !s.trim_ascii().is_empty()) else {
            return self.report(Code::LegacyRowUnsigned, String::new());
        };
        let Some(kid) = row.kid.as_deref().filter(|k| !k.is_empty()) else {
            return self.report(Code::KidUnknown, "the row names no kid".into());
        };
        let Some(at) = signers.find(kid) else {
            return self.report(Code::KidUnknown, format!("kid {}", shown(kid)));
        };
        let signer = &signers.list[at];
        let used = self.piece.uses.entry(at).or_default();
        used.signatures += 1;
        if time.is_some_and(|t| signer.valid_from.is_some_and(|v| t < v) || signer.revoked_at.is_some_and(|v| t > v)) {
            used.outside += 1;
            used.first_outside.get_or_insert(place);
        }
        let key = match &signer.key {
            Ok(key) => key,
            Err(Refused::Algorithm(why)) => {
                return self.report(Code::AlgorithmMismatch, format!("kid {}: {why}", shown(kid)));
            }
            Err(Refused::Key(why)) => {
                return self.report(Code::LegacyKeyRefused, format!("kid {}: {why}", shown(kid)));
            }
        };
        let length = match key {
            Key::Ed25519(_) => 64,
            Key::Rsa(_, modulus) => *modulus,
        };
        let Some(bytes) = decode_signature(text, length) else {
            return self.report(Code::LegacySignatureInvalid, "the signature is neither hex nor base64".into());
        };
        if bytes.len() != length {
            let code = match (key, bytes.len()) {
                (Key::Ed25519(_), 256..) | (Key::Rsa(..), 64) => Code::AlgorithmMismatch,
                _ => Code::LegacySignatureInvalid,
            };
            let algorithm = key.algorithm();
            return self.report(
                code,
                format!("kid {}: expected {length} bytes of {algorithm}, found {}", shown(kid), bytes.len()),
            );
        }
        // Without a digest the row has a finding already.
        let Some(digest) = digest else { return };
        match key {
            Key::Ed25519(_) => {
                let mut raw = [0; 64];
                raw.copy_from_slice(&bytes);
                self.batches.entry(at).or_default().push((self.piece.rows.len(), Signature::from(raw), digest));
            }
            Key::Rsa(der, _) => {
                let holds = |scheme| UnparsedPublicKey::new(scheme, der).verify(&self.message, &bytes).is_ok();
                if !holds(&RSA_PKCS1_2048_8192_SHA256) && !holds(&RSA_PSS_2048_8192_SHA256) {
                    self.report(Code::LegacySignatureInvalid, format!("kid {}", shown(kid)));
                }
            }
        }
    }

    /// All signatures of one key at once; if one of them fails, each by itself. ZIP-215 gives both the same verdict.
    fn check_batches(&mut self) {
        let Some(signers) = self.signers else { return };
        for (at, batch) in std::mem::take(&mut self.batches) {
            let Ok(Key::Ed25519(raw)) = &signers.list[at].key else { continue };
            let key = VerificationKeyBytes::from(*raw);
            let mut all = batch::Verifier::new();
            for (_, signature, digest) in &batch {
                all.queue((key, *signature, &digest.0));
            }
            if all.verify(rand::rng()).is_ok() {
                continue;
            }
            let single = VerificationKey::try_from(key);
            for (row, signature, digest) in batch {
                let holds = single.as_ref().is_ok_and(|k| k.verify(&signature, &digest.0).is_ok());
                if !holds {
                    let evidence = format!("kid {}", shown(&signers.list[at].kid));
                    self.piece.findings.push((row, Code::LegacySignatureInvalid, evidence));
                }
            }
        }
    }

    fn count(&mut self, row: &RawRow<'_>, time: Option<i64>) {
        let name = row.event_type.as_deref().unwrap_or_default();
        if let Some(n) = self.types.get_mut(name) {
            *n += 1;
        } else {
            let name = if self.types.len() < TYPES_MAX { shown(name) } else { OTHER_TYPES.to_owned() };
            *self.types.entry(name).or_default() += 1;
        }
        if let Some(time) = time {
            *self.piece.days.entry(time.div_euclid(DAY_MS)).or_default() += 1;
        }
    }
}

/// SHA-256 over the row's name and every field that the name does not cover: id, actor, type, time (milliseconds since
/// 1970 if it can be read), stored hash, signature, kid; each with its length, 2^64-1 for none.
fn row_digest(row: &RawRow<'_>, name: &Hash, time: Option<i64>) -> Hash {
    let mut hasher = Sha256::new();
    let mut buffer = Vec::with_capacity(512);
    buffer.extend_from_slice(&name.0);
    let mut field = |value: Option<&str>| {
        buffer.extend_from_slice(&value.map_or(u64::MAX, |v| v.len() as u64).to_le_bytes());
        buffer.extend_from_slice(value.unwrap_or_default().as_bytes());
    };
    let millis = time.map(|t| t.to_string());
    field(row.id.as_deref());
    field(row.actor.as_deref());
    field(row.event_type.as_deref());
    field(millis.as_deref().or(row.time.as_deref()));
    field(row.hash.as_deref());
    field(row.signature.as_deref());
    field(row.kid.as_deref());
    hasher.update(&buffer);
    Hash(hasher.finalize().into())
}

/// Hex if all characters are and the length is twice a signature's; else base64 of any kind.
fn decode_signature(text: &str, length: usize) -> Option<Vec<u8>> {
    let text = text.trim_ascii();
    if text.len() == length * 2 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return from_hex(&text.to_ascii_lowercase());
    }
    decode_base64(text)
}
