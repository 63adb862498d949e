//! What an auditor kept: checkpoints, or the manifest of an export. It says what the ledger was then; a ledger that does not
//! contain it was cut off, rolled back or rewritten, whoever holds its keys now.

use std::path::Path;

use ledger_engine::export::{MANIFEST_NAME, Manifest};
use ledger_engine::hash::Hash;
use ledger_engine::note::{Checkpoint, NOTE_BYTES_MAX, Note, NoteKey};
use ledger_engine::registry::{Purpose, Registry};
use ledger_engine::succession::TreeHead;

use crate::bounded;
use crate::report::{KeyReport, Report};

/// Largest anchor file, bytes: a checkpoint of each of 1,024 chains.
const FILE_BYTES_MAX: u64 = 1024 * NOTE_BYTES_MAX as u64;

/// Size and root of a chain, as they were when somebody kept them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Where it was read from.
    pub name: String,
    size: u64,
    root: Hash,
    of: Kept,
}

/// Of which chain it is, and why it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kept {
    /// A checkpoint of this origin: its signature is checked.
    Checkpoint(String, Note),
    /// An export's manifest: whoever kept it answers for it.
    Manifest(Hash, u32),
}

/// An anchor that cannot be used: never a fault of the ledger.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnchorError {
    /// The file or directory cannot be read.
    #[error("anchor {0}: {1}; check the path")]
    Unreadable(String, std::io::Error),
    /// Neither a checkpoint nor a manifest.
    #[error("anchor {0} is neither a file of signed checkpoints nor the manifest of an export: {1}")]
    Shape(String, String),
}

impl Anchor {
    /// Reads the checkpoints of a file, or of all files of a directory in the order of their names; or the manifest of an
    /// export, by its own path or its directory's.
    pub fn read(path: &Path) -> Result<Vec<Anchor>, AnchorError> {
        let unreadable = |e| AnchorError::Unreadable(path.display().to_string(), e);
        let manifest = path.join(MANIFEST_NAME);
        if manifest.is_file() {
            return Anchor::read(&manifest);
        }
        if !path.is_dir() {
            let bytes = bounded::read(path, FILE_BYTES_MAX, "checkpoints").map_err(unreadable)?;
            let text = String::from_utf8(bytes).map_err(|e| unreadable(std::io::Error::other(e)))?;
            return Anchor::parse(&path.display().to_string(), &text);
        }
        let names = std::fs::read_dir(path).and_then(|list| list.map(|e| Ok(e?.path())).collect());
        let mut names: Vec<std::path::PathBuf> = names.map_err(unreadable)?;
        // Whatever is no file is an error of reading it: an anchor that is passed over would not be missed.
        names.sort();
        let mut anchors = Vec::new();
        for name in &names {
            if !name.is_file() {
                let what = std::io::Error::other("no file, or one that cannot be reached");
                return Err(AnchorError::Unreadable(name.display().to_string(), what));
            }
            anchors.extend(Anchor::read(name)?);
        }
        if anchors.is_empty() {
            return Err(AnchorError::Shape(path.display().to_string(), "the directory has no files".into()));
        }
        Ok(anchors)
    }

    /// Reads checkpoints that follow on one another, as `ledger checkpoint` prints them. A signature line ends a note if
    /// none follows it.
    pub fn parse(name: &str, text: &str) -> Result<Vec<Anchor>, AnchorError> {
        let shape = |e: &str| AnchorError::Shape(name.to_owned(), e.to_owned());
        if text.starts_with('{') {
            let manifest = Manifest::decode(text.as_bytes()).map_err(|e| shape(&e.to_string()))?;
            let kept = |c: &ledger_engine::export::ChainRange| Anchor {
                name: name.to_owned(),
                size: c.to,
                root: c.root,
                of: Kept::Manifest(manifest.ledger_id, c.chain),
            };
            return Ok(manifest.chains.iter().map(kept).collect());
        }
        let (mut anchors, mut note, mut signed) = (Vec::new(), String::new(), false);
        for line in text.split_inclusive('\n').chain([""]) {
            let signature = line.starts_with('\u{2014}');
            if signed && !signature {
                let parsed = Note::parse(note.as_bytes()).map_err(|e| shape(&e.to_string()))?;
                let checkpoint = Checkpoint::parse(&parsed.text).map_err(|e| shape(&e.to_string()))?;
                let Checkpoint { origin, size, root } = checkpoint;
                anchors.push(Anchor { name: name.to_owned(), size, root, of: Kept::Checkpoint(origin, parsed) });
                note.clear();
            }
            signed = signature;
            // Between notes there may be empty lines.
            if !(note.is_empty() && line.trim().is_empty()) {
                note.push_str(line);
            }
        }
        if anchors.is_empty() || !note.is_empty() {
            return Err(shape("no signed checkpoint, or one that is cut off"));
        }
        Ok(anchors)
    }

    /// How many entries it covers.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The RFC 6962 root over them.
    pub fn root(&self) -> Hash {
        self.root
    }

    /// What it says of a chain of the ledger that a report is of, if one of that ledger's checkpoint keys signed it; a manifest stands for
    /// itself.
    pub fn tree_head(&self, report: &Report) -> Option<TreeHead> {
        let (ledger_id, origin) = (report.ledger_id()?, report.origin()?);
        let chain = self.chain(origin, &ledger_id, report.chains().len() as u32)?;
        let note = match &self.of {
            Kept::Manifest(..) => None,
            Kept::Checkpoint(origin, note) => {
                let keys = report.keys().iter().filter(|k| k.purpose == Purpose::Checkpoint.as_str());
                let key = |k: &KeyReport| {
                    Some(NoteKey { name: origin.clone(), public_key: Hash::from_hex(&k.public_key)?.0 })
                };
                let keys: Vec<NoteKey> = keys.filter_map(key).collect();
                note.verify(&keys).ok()?;
                // As much text as an entry's member may have.
                Some(note.to_string()).filter(|text| text.len() <= 1024)
            }
        };
        Some(TreeHead { chain, size: self.size, root: self.root, checkpoint: note })
    }

    /// Whether it says that a chain of the ledger that a report is of had more entries than the report has; whoever signed it.
    pub fn is_beyond(&self, report: &Report) -> bool {
        let (Some(ledger_id), Some(origin)) = (report.ledger_id(), report.origin()) else { return false };
        let chain = self.chain(origin, &ledger_id, report.chains().len() as u32);
        let of_chain = report.chains().iter().find(|c| chain.is_some_and(|k| u64::from(k) == c.chain));
        of_chain.is_some_and(|c| self.size > c.entries)
    }

    /// The chain it is of, if it is of this ledger.
    pub(crate) fn chain(&self, base: &str, ledger_id: &Hash, chains: u32) -> Option<u32> {
        match &self.of {
            Kept::Checkpoint(origin, _) => (0..chains).find(|k| Checkpoint::origin_of(base, ledger_id, *k) == *origin),
            Kept::Manifest(id, chain) => (id == ledger_id && *chain < chains).then_some(*chain),
        }
    }

    /// Why it says nothing about this ledger, if it does not: it is another ledger's, or no checkpoint key of the registry,
    /// valid or retired, signed it.
    pub(crate) fn unusable(&self, chain: Option<u32>, registry: &Registry) -> Option<String> {
        let (origin, note) = match &self.of {
            Kept::Checkpoint(origin, _) if chain.is_none() => {
                return Some(format!("anchor {} is of another ledger: {origin}", self.name));
            }
            Kept::Manifest(id, _) if chain.is_none() => {
                return Some(format!("anchor {} is of another ledger: {id}", self.name));
            }
            Kept::Manifest(..) => return None,
            Kept::Checkpoint(origin, note) => (origin, note),
        };
        let key = |public_key| NoteKey { name: origin.clone(), public_key };
        let keys: Vec<NoteKey> =
            registry.checkpoint_keys().filter_map(|r| r.key.public_key.ed25519().map(key)).collect();
        note.verify(&keys)
            .err()
            .map(|e| format!("anchor {}: {e}; get the file again from where it was kept", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTE: &str = "o/1/0\n7\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n\u{2014} o/1/0 AAAAAAAAAAA=\n";

    #[test]
    fn files_hold_one_checkpoint_or_several() {
        let sizes = |text: &str| Anchor::parse("f", text).map(|a| a.iter().map(Anchor::size).collect::<Vec<_>>());
        assert_eq!(sizes(NOTE).unwrap(), [7]);
        assert_eq!(sizes(&format!("\n{NOTE}\n{}", NOTE.replace('7', "8"))).unwrap(), [7, 8]);
        assert_eq!(sizes(&format!("{NOTE}\u{2014} o/1/0 BBBBBBBBBBA=\n")).unwrap(), [7], "two signatures");
        for broken in
            ["", "\n", "o\n", &NOTE[..NOTE.len() - 1], &format!("{NOTE}\no/1/0\n"), &NOTE.replace("\n\n", "\n")]
        {
            assert!(sizes(broken).is_err(), "{broken:?}");
        }
    }
}
