//! C2SP signed notes (signed-note v1.0.0) and checkpoints (tlog-checkpoint v1.0.0), Ed25519 signatures only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::commit::verify_ed25519;
use crate::hash::{Hash, sha256, to_hex};

/// Signature type of Ed25519 in key ids.
const TYPE_ED25519: u8 = 1;
/// Most bytes of a note that is read.
pub const NOTE_BYTES_MAX: usize = 65_536;
/// Most signature lines that are read; the specification asks for at least 16.
pub const NOTE_SIGNATURES_MAX: usize = 64;

/// A text with signature lines. The text ends in a newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The signed text, final newline included.
    pub text: String,
    /// Its signature lines, in order.
    pub signatures: Vec<NoteSignature>,
}

/// One signature line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteSignature {
    /// Key name.
    pub name: String,
    /// First four bytes of the key hash.
    pub key_id: [u8; 4],
    /// The rest of the payload, 64 bytes for Ed25519.
    pub signature: Vec<u8>,
}

/// A public key that may sign notes: the C2SP "vkey".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteKey {
    /// Key name, by convention the log's origin.
    pub name: String,
    /// 32 raw bytes.
    pub public_key: [u8; 32],
}

/// Why a text is not a note, a key or a checkpoint, or does not verify.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoteError {
    /// Not of the form the specification gives.
    #[error("not a signed note: {0}")]
    Malformed(&'static str),
    /// No signature line by a known key.
    #[error("no signature by a known key")]
    UnknownKey,
    /// A line by a known key does not verify.
    #[error("the signature by {0} does not verify")]
    BadSignature(String),
}

fn malformed<T>(what: &'static str) -> Result<T, NoteError> {
    Err(NoteError::Malformed(what))
}

fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c == '+' || c.is_control())
}

impl NoteKey {
    /// `SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key)`, first four bytes.
    pub fn key_id(&self) -> [u8; 4] {
        let h = sha256(&[self.name.as_bytes(), &[0x0a, TYPE_ED25519], &self.public_key]);
        [h.0[0], h.0[1], h.0[2], h.0[3]]
    }

    /// The vkey text: `name+hex8(key id)+base64(0x01 ‖ public key)`.
    pub fn to_vkey(&self) -> String {
        let mut key = vec![TYPE_ED25519];
        key.extend_from_slice(&self.public_key);
        format!("{}+{}+{}", self.name, to_hex(&self.key_id()), BASE64.encode(key))
    }

    /// Reads a vkey. The base64 part may hold `+`, so the text splits into three from the left.
    pub fn parse_vkey(text: &str) -> Result<NoteKey, NoteError> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return malformed("a vkey has three parts");
        };
        let key = BASE64.decode(key).map_err(|_| NoteError::Malformed("vkey base64"))?;
        let Some((&TYPE_ED25519, key)) = key.split_first() else { return malformed("vkey is not Ed25519") };
        let public_key = key.try_into().map_err(|_| NoteError::Malformed("vkey length"))?;
        let key = NoteKey { name: name.to_owned(), public_key };
        if !is_key_name(name) || to_hex(&key.key_id()) != id {
            return malformed("vkey name or key id");
        }
        Ok(key)
    }
}

impl Note {
    /// Reads a note: text, empty line, signature lines. Splits at the last empty line.
    pub fn parse(bytes: &[u8]) -> Result<Note, NoteError> {
        if bytes.len() > NOTE_BYTES_MAX {
            return malformed("too long");
        }
        let Ok(all) = std::str::from_utf8(bytes) else { return malformed("not UTF-8") };
        if all.bytes().any(|b| b < 0x20 && b != b'\n') {
            return malformed("a control character");
        }
        let Some(split) = all.rfind("\n\n") else { return malformed("no empty line before the signatures") };
        let (text, lines) = (&all[..=split], &all[split + 2..]);
        let Some(lines) = lines.strip_suffix('\n') else { return malformed("no newline at the end") };
        let signatures: Vec<_> = lines.split('\n').map(read_signature).collect::<Result<_, _>>()?;
        if signatures.len() > NOTE_SIGNATURES_MAX {
            return malformed("too many signatures");
        }
        Ok(Note { text: text.to_owned(), signatures })
    }

    /// Checks every line by one of `keys`: at least one must be there, and none may fail.
    pub fn verify(&self, keys: &[NoteKey]) -> Result<(), NoteError> {
        let mut known = false;
        for line in &self.signatures {
            for key in keys.iter().filter(|k| k.name == line.name && k.key_id() == line.key_id) {
                known = true;
                if !verify_ed25519(&key.public_key, self.text.as_bytes(), &line.signature) {
                    return Err(NoteError::BadSignature(line.name.clone()));
                }
            }
        }
        if known { Ok(()) } else { Err(NoteError::UnknownKey) }
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.text)?;
        for s in &self.signatures {
            let mut payload = s.key_id.to_vec();
            payload.extend_from_slice(&s.signature);
            writeln!(f, "\u{2014} {} {}", s.name, BASE64.encode(payload))?;
        }
        Ok(())
    }
}

fn read_signature(line: &str) -> Result<NoteSignature, NoteError> {
    let Some((name, payload)) = line.strip_prefix("\u{2014} ").and_then(|rest| rest.split_once(' ')) else {
        return malformed("a signature line");
    };
    let payload = BASE64.decode(payload).map_err(|_| NoteError::Malformed("signature base64"))?;
    if !is_key_name(name) || payload.len() < 5 {
        return malformed("a signature line");
    }
    let (id, signature) = payload.split_at(4);
    Ok(NoteSignature { name: name.to_owned(), key_id: [id[0], id[1], id[2], id[3]], signature: signature.to_owned() })
}

/// The signed head of one chain: origin, size, RFC 6962 root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// `<base>/<first 16 hex of ledger id>/<chain>`.
    pub origin: String,
    /// How many entries.
    pub size: u64,
    /// Root over all header bytes below `size`.
    pub root: Hash,
}

impl Checkpoint {
    /// The origin line of a chain's checkpoints (FORMAT.md 7).
    pub fn origin_of(base: &str, ledger_id: &Hash, chain: u32) -> String {
        format!("{base}/{}/{chain}", &ledger_id.to_hex()[..16])
    }

    /// The text that is signed.
    pub fn to_text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root.0))
    }

    /// Reads the text of a note. Extension lines are refused: ours never have any. What is accepted prints to the same text.
    pub fn parse(text: &str) -> Result<Checkpoint, NoteError> {
        let Some(text) = text.strip_suffix('\n') else { return malformed("no newline at the end of the checkpoint") };
        let lines: Vec<&str> = text.split('\n').collect();
        let [origin, size, root] = lines[..] else { return malformed("a checkpoint has three lines") };
        let number: u64 = size.parse().map_err(|_| NoteError::Malformed("checkpoint size"))?;
        let hash = BASE64.decode(root).ok().and_then(|b| Hash::from_slice(&b));
        let Some(root) = hash else { return malformed("checkpoint root") };
        if origin.is_empty() || number.to_string() != size || number > i64::MAX as u64 {
            return malformed("checkpoint origin or size");
        }
        Ok(Checkpoint { origin: origin.to_owned(), size: number, root })
    }

    /// The note with one signature line, made by `sign` over [`Checkpoint::to_text`].
    pub fn to_note(&self, public_key: [u8; 32], signature: Vec<u8>) -> Note {
        let key = NoteKey { name: self.origin.clone(), public_key };
        let line = NoteSignature { name: key.name.clone(), key_id: key.key_id(), signature };
        Note { text: self.to_text(), signatures: vec![line] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle;

    /// The test vector of the signed-note specification.
    #[test]
    fn c2sp_signed_note_vector() {
        let key = NoteKey::parse_vkey("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k").unwrap();
        let text = "This is an example message.\n\n\u{2014} example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";
        let note = Note::parse(text.as_bytes()).unwrap();
        assert_eq!(note.verify(std::slice::from_ref(&key)), Ok(()));
        assert_eq!(note.to_string(), text);
        let mut bad = note.clone();
        bad.text = "This is an example message!\n".into();
        assert!(matches!(bad.verify(std::slice::from_ref(&key)), Err(NoteError::BadSignature(_))));
        assert_eq!(note.verify(&[]), Err(NoteError::UnknownKey));
        assert_eq!(NoteKey::parse_vkey(&key.to_vkey()), Ok(key));
    }

    const CHECKPOINT: &str = "ledger.example/audit\n5\n4U5DYn5HMHDekm/gJsxnCCDmAogImr0flfg/Qv6B96s=\n\n\u{2014} ledger.example/audit 0mhBVPzqNSCXuLn/tgLq1wSyG6k80XOFk3k/Mho33RwvcEotUQL/ykEzLjimGlbPt5ORV18mWdZ6V1ssxz8i4jx1yAQ=\n\u{2014} witness.example/w1 3xwKNQAAAABlU/EAeNMNgiut3NyFi3+PeXGCgjqNKnQNOgQOU9UDcKznbRBwssPR07mvKRUx0Xt9JfPfsW4ZgGJe5BFRT8M5ItBTDw==\n";

    /// The project's log vectors: seed 32 × 0x01, entries `e0`..`e4`.
    #[test]
    fn checkpoint_vector() {
        use ed25519_dalek::{Signer as _, SigningKey};
        let note = Note::parse(CHECKPOINT.as_bytes()).unwrap();
        assert_eq!(note.to_string(), CHECKPOINT);
        let key =
            NoteKey::parse_vkey("ledger.example/audit+d2684154+AYqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c").unwrap();
        assert_eq!(note.verify(std::slice::from_ref(&key)), Ok(()));
        let checkpoint = Checkpoint::parse(&note.text).unwrap();
        let leaves: Vec<Hash> = (0..5).map(|i| merkle::leaf_hash(format!("e{i}").as_bytes())).collect();
        assert_eq!(checkpoint.root, merkle::root(&leaves));
        let signing = SigningKey::from_bytes(&[1; 32]);
        let again = checkpoint.to_note(key.public_key, signing.sign(checkpoint.to_text().as_bytes()).to_vec());
        assert_eq!(again.signatures[0], note.signatures[0]);
        let hash = |b64: &str| Hash::from_slice(&BASE64.decode(b64).unwrap()).unwrap();
        let (a, b, c) = (
            hash("526xuXsGdXFQ+V4GNXp9xATKURtjqQMwpWqU3z0NZtE="),
            hash("cY+gNp10dQmbxstDJ+OCOklyKF+SvUmXGlg8nwj/to0="),
            hash("jh+IfPx8el5D8gLa9n2Zro+P1LM6ayUbz59dg0djA+o="),
        );
        let Ok(inclusion) = merkle::inclusion_proof(&leaves[..], 3, 5);
        assert_eq!(inclusion, [a, b, c]);
        let Ok(consistency) = merkle::consistency_proof(&leaves[..], 3, 5);
        assert_eq!(consistency, [a, hash("1b21ihkXOmoBEd8/H2LbqgDkQiHg8JtHSJgSoBDNUxQ="), b, c]);
        assert_eq!(merkle::root(&leaves[..3]), hash("ZLJJxOBgbj2XQsSb/VfNHj6xcPXM76JuoEXKGT1kp18="));
    }

    #[test]
    fn malformed_notes_are_refused() {
        for text in [
            "",
            "a\n",
            "a\n\n",
            "a\n\n\u{2014} b\n",
            "a\n\n\u{2014} b AAAA\n",
            "a\r\n\n\u{2014} b AAAAAAAA\n",
            "a\n\n\u{2014} b AAAAAAAA",
        ] {
            assert!(Note::parse(text.as_bytes()).is_err(), "{text:?}");
        }
        for text in [
            "o\n01\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
            "o\n1\nAAAA\n",
            "o\n1\n",
            "o\n1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
            "o\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\nx\n",
        ] {
            assert!(Checkpoint::parse(text).is_err(), "{text:?}");
        }
    }
}
