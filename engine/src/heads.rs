//! The event `chain.heads` (FORMAT.md 9): what chain 0 says of the sizes, last hashes and roots of all chains.

use crate::hash::Hash;
use crate::json::{Object, Value};
use crate::store::{ChainHead, CheckpointRow};

/// Its type.
pub(crate) const EVENT_TYPE: &str = "chain.heads";

/// Its payload, of all heads, ascending.
pub(crate) fn to_payload(heads: &[ChainHead]) -> Object {
    let item = |head: &ChainHead| {
        let object = Object::new()
            .with("chain", i64::from(head.chain))
            .with("head_hash", head.hash.to_hex())
            .with("root", head.range.root().to_hex())
            .with("size", head.size() as i64);
        Value::Object(object)
    };
    Object::new().with("heads", heads.iter().map(item).collect::<Vec<_>>())
}

/// Sizes and roots that a payload names, by chain; `None` if it is no such payload.
pub(crate) fn rows(payload: &Object) -> Option<Vec<CheckpointRow>> {
    let row = |(chain, item): (u32, &Value)| {
        let head = item.as_object()?;
        let size = head.value("size")?.as_int().and_then(|n| u64::try_from(n).ok())?;
        let root = head.value("root").and_then(Value::as_str).and_then(Hash::from_hex)?;
        (head.value("chain")?.as_int()? == i64::from(chain)).then_some(CheckpointRow { chain, size, root, note: None })
    };
    (0..).zip(payload.value("heads").and_then(Value::as_array)?).map(row).collect()
}

/// The cut that an entry at `index` of chain 0 names, itself included, with the root of that chain before it; `None` if it does not come right
/// after what it names.
pub(crate) fn cut(mut rows: Vec<CheckpointRow>, index: u64) -> Option<Vec<CheckpointRow>> {
    let own = rows.first_mut().filter(|row| (row.chain, row.size) == (0, index))?;
    own.size += 1;
    Some(rows)
}
