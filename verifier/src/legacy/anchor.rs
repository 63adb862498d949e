//! A legacy head kept for next time.

use std::path::Path;

use ledger_engine::hash::Hash;
use serde_json::json;

use crate::{bounded, replace};

/// The member `format` of the file.
const FORMAT: &str = "legacy-head/1";
/// The largest file, bytes.
const BYTES_MAX: u64 = 1 << 20;

/// What a chain was when it was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Rows from the genesis to the head.
    pub rows: u64,
    /// The hash of the last row.
    pub head_hash: Hash,
    /// SHA-256 over all rows in chain order, every field included.
    pub rows_digest: Hash,
}

/// An anchor that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnchorError {
    /// The file cannot be read or written.
    #[error("anchor {0}: {1}; check the path")]
    Unreadable(String, std::io::Error),
    /// Not a saved head.
    #[error("anchor {0} is not a head saved with --save-anchor: {1}")]
    Shape(String, &'static str),
}

impl Anchor {
    /// Reads a saved head, or all (`.json`) of a directory in the order of their names.
    pub fn read(path: &Path) -> Result<Vec<Anchor>, AnchorError> {
        let unreadable = |e| AnchorError::Unreadable(path.display().to_string(), e);
        if !path.is_dir() {
            return Ok(vec![Anchor::read_file(path)?]);
        }
        let names = std::fs::read_dir(path).and_then(|list| list.map(|e| Ok(e?.path())).collect());
        let mut names: Vec<std::path::PathBuf> = names.map_err(unreadable)?;
        names.retain(|p| p.extension().is_some_and(|e| e == "json"));
        names.sort();
        if names.is_empty() {
            return Err(AnchorError::Shape(path.display().to_string(), "the directory has no .json file"));
        }
        names.iter().map(|p| Anchor::read_file(p)).collect()
    }

    fn read_file(path: &Path) -> Result<Anchor, AnchorError> {
        let name = path.display().to_string();
        let bytes =
            bounded::read(path, BYTES_MAX, "an anchor").map_err(|e| AnchorError::Unreadable(name.clone(), e))?;
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|_| AnchorError::Shape(name.clone(), "not JSON"))?;
        if value["format"] != FORMAT {
            return Err(AnchorError::Shape(name, "member format is not legacy-head/1"));
        }
        let hash = |member: &str| value[member].as_str().and_then(Hash::from_hex);
        let rows = value["rows"].as_u64().filter(|n| *n > 0);
        let (Some(rows), Some(head_hash), Some(rows_digest)) = (rows, hash("head_hash"), hash("rows_digest")) else {
            return Err(AnchorError::Shape(name, "rows, head_hash or rows_digest is missing or no number or hash"));
        };
        Ok(Anchor { rows, head_hash, rows_digest })
    }

    /// Writes the file, and never half over an old one.
    pub fn save(&self, path: &Path) -> Result<(), AnchorError> {
        let json = json!({
            "format": FORMAT, "rows": self.rows, "head_hash": self.head_hash.to_hex(),
            "rows_digest": self.rows_digest.to_hex(),
        });
        let text = format!("{json:#}\n");
        replace(path, text.as_bytes()).map_err(|e| AnchorError::Unreadable(path.display().to_string(), e))
    }
}
