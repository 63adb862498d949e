//! Succession: what a ledger says of the one that it takes the place of, whose archive did not reach its newest checkpoint (FORMAT.md 4.1).
//!
//! Such a ledger must not go on: it would have two histories. It is restored as far as it can be, and closed; another one begins, and its genesis
//! names what was lost.

use crate::domain::fields::{count, hash, list, object, text1};
use crate::hash::Hash;
use crate::json::{self, Object, Value};
use crate::note::{Checkpoint, Note};

/// A chain's tree at a size, and a signed checkpoint that says so or says it of a smaller size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeHead {
    /// Which chain.
    pub chain: u32,
    /// How many entries.
    pub size: u64,
    /// RFC 6962 root over them.
    pub root: Hash,
    /// Signed note of a checkpoint of this size, or of the largest before it; none where no checkpoint was kept.
    pub checkpoint: Option<String>,
}

/// Entries of one chain that were signed and are not restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostRange {
    /// Which chain.
    pub chain: u32,
    /// Index of the first.
    pub from: u64,
    /// Index after the last that is known of; there may have been more.
    pub to: u64,
}

/// A ledger that was closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Succession {
    /// Its id.
    pub ledger_id: Hash,
    /// Base of its checkpoints' origins.
    pub origin: String,
    /// What was restored: one of each chain, by number.
    pub restored: Vec<TreeHead>,
    /// The newest that is known of chains of which more was signed than was restored, by number.
    pub newest: Vec<TreeHead>,
    /// What is known to be lost; it follows from the other two.
    pub lost: Vec<LostRange>,
    /// What people say of what was lost; 1 to 1,024 bytes.
    pub statement: String,
}

impl TreeHead {
    /// As it is recorded.
    pub fn to_value(&self) -> Value {
        let mut object = Object::new()
            .with("chain", i64::from(self.chain))
            .with("root", self.root.to_hex())
            .with("size", crate::export::int(self.size));
        object.set_some("checkpoint", self.checkpoint.as_deref());
        Value::Object(object)
    }

    /// Reads what [`TreeHead::to_value`] makes.
    pub fn read(value: &Value) -> Option<TreeHead> {
        object(value, |f| TreeHead {
            chain: f.required("chain", |v| count(v).and_then(|n| u32::try_from(n).ok())),
            size: f.required("size", count),
            root: f.required("root", hash),
            checkpoint: f.optional("checkpoint", text1),
        })
    }

    /// Whether the checkpoint, if there is one, is of this chain of a ledger, and of no larger size or another root.
    fn fits(&self, origin: &str, ledger_id: &Hash) -> bool {
        let Some(text) = &self.checkpoint else { return true };
        let Some(checkpoint) = Note::parse(text.as_bytes()).ok().and_then(|n| Checkpoint::parse(&n.text).ok()) else {
            return false;
        };
        checkpoint.origin == Checkpoint::origin_of(origin, ledger_id, self.chain)
            && (checkpoint.size < self.size || (checkpoint.size, checkpoint.root) == (self.size, self.root))
    }
}

impl Succession {
    /// What is lost where `newest` goes beyond `restored`.
    pub fn lost_between(restored: &[TreeHead], newest: &[TreeHead]) -> Vec<LostRange> {
        let lost = |n: &TreeHead| {
            let from = restored.iter().find(|r| r.chain == n.chain)?.size;
            (from < n.size).then_some(LostRange { chain: n.chain, from, to: n.size })
        };
        newest.iter().filter_map(lost).collect()
    }

    /// How many entries are known to be lost.
    pub fn lost_entries(&self) -> u64 {
        self.lost.iter().map(|l| l.to - l.from).fold(0, u64::saturating_add)
    }

    /// The object: a member of the genesis payload, and in canonical form the file that `ledger restore` writes.
    pub fn to_object(&self) -> Object {
        let lost = |l: &LostRange| {
            let (from, to) = (crate::export::int(l.from), crate::export::int(l.to));
            Value::Object(Object::new().with("chain", i64::from(l.chain)).with("from", from).with("to", to))
        };
        Object::new()
            .with("ledger_id", self.ledger_id.to_hex())
            .with("lost", self.lost.iter().map(lost).collect::<Vec<_>>())
            .with("newest", self.newest.iter().map(TreeHead::to_value).collect::<Vec<_>>())
            .with("origin", self.origin.as_str())
            .with("restored", self.restored.iter().map(TreeHead::to_value).collect::<Vec<_>>())
            .with("statement", self.statement.as_str())
    }

    /// Reads the object, if it says what can be.
    pub fn read(value: &Value) -> Option<Succession> {
        let lost = |value: &Value| {
            object(value, |f| LostRange {
                chain: f.required("chain", |v| count(v).and_then(|n| u32::try_from(n).ok())),
                from: f.required("from", count),
                to: f.required("to", count),
            })
        };
        let succession = object(value, |f| Succession {
            ledger_id: f.required("ledger_id", hash),
            origin: f.required("origin", |v| text1(v).filter(|o| crate::genesis::is_origin(o))),
            restored: f.required("restored", |v| list(v, TreeHead::read)),
            newest: f.required("newest", |v| list(v, TreeHead::read)),
            lost: f.required("lost", |v| list(v, lost)),
            statement: f.required("statement", text1),
        })?;
        let Succession { ledger_id, origin, restored, newest, lost, .. } = &succession;
        let numbered = (0..).zip(restored).all(|(k, head)| head.chain == k) && !restored.is_empty();
        let ascending = newest.windows(2).all(|pair| pair[0].chain < pair[1].chain);
        let fit = restored.iter().chain(newest).all(|head| head.fits(origin, ledger_id));
        let beyond = Succession::lost_between(restored, newest);
        (numbered && ascending && fit && beyond.len() == newest.len() && beyond == *lost).then_some(succession)
    }

    /// Reads the file.
    pub fn decode(bytes: &[u8]) -> Option<Succession> {
        Succession::read(&json::parse(bytes).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(chain: u32, size: u64) -> TreeHead {
        TreeHead { chain, size, root: Hash([size as u8; 32]), checkpoint: None }
    }

    fn succession() -> Succession {
        let (restored, newest) = (vec![head(0, 9), head(1, 4)], vec![head(1, 7)]);
        let lost = Succession::lost_between(&restored, &newest);
        let (origin, statement) = ("ledger.example/old".into(), "three orders of the last night".into());
        Succession { ledger_id: Hash([1; 32]), origin, restored, newest, lost, statement }
    }

    #[test]
    fn it_comes_back_and_adds_up() {
        let whole = succession();
        assert_eq!((whole.lost_entries(), &whole.lost[..]), (3, &[LostRange { chain: 1, from: 4, to: 7 }][..]));
        assert_eq!(Succession::decode(&whole.to_object().to_canonical()), Some(whole.clone()));
        type Change = fn(&mut Succession);
        let changes: [Change; 9] = [
            |s| s.lost.clear(),
            |s| s.lost[0].to += 1,
            |s| s.newest.push(head(0, 9)),
            |s| s.newest.insert(0, head(2, 9)),
            |s| s.restored.clear(),
            |s| s.restored.swap(0, 1),
            |s| s.statement.clear(),
            |s| s.origin = "with space".into(),
            |s| s.newest[0].checkpoint = Some("no note".into()),
        ];
        for (n, change) in changes.iter().enumerate() {
            let mut changed = whole.clone();
            change(&mut changed);
            assert_eq!(Succession::read(&Value::Object(changed.to_object())), None, "{n}");
        }
    }

    #[test]
    fn checkpoints_are_of_the_ledger_and_of_no_later_size() {
        let with = |chain: u32, size: u64, root: Hash| {
            let checkpoint =
                Checkpoint { origin: Checkpoint::origin_of("ledger.example/old", &Hash([1; 32]), chain), size, root };
            let text = checkpoint.to_text();
            let mut whole = succession();
            whole.restored[0].checkpoint = Some(format!("{text}\n\u{2014} {} AAAAAAAAAAA=\n", checkpoint.origin));
            Succession::read(&Value::Object(whole.to_object())).is_some()
        };
        assert!(with(0, 9, Hash([9; 32])) && with(0, 8, Hash([5; 32])));
        assert!(!with(0, 9, Hash([5; 32])) && !with(0, 10, Hash([9; 32])) && !with(1, 9, Hash([9; 32])));
    }
}
