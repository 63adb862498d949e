//! Projections: read models whose rows are a pure function of the entries (FORMAT.md 9).

use serde::{Deserialize, Serialize};

use super::case::{Case, Touched, license_id};
use super::sku::Sku;
use crate::hash::Hash;
use crate::stream::{CaseId, Stream};

/// One value of a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cell {
    /// SQL NULL.
    Null,
    /// INTEGER.
    Int(i64),
    /// TEXT.
    Text(String),
    /// BLOB.
    Blob(Vec<u8>),
}

impl From<i64> for Cell {
    fn from(v: i64) -> Self {
        Cell::Int(v)
    }
}
impl From<u64> for Cell {
    fn from(v: u64) -> Self {
        // Sizes and revisions are below 2^63 by the header's rules.
        Cell::Int(v as i64)
    }
}
impl From<u32> for Cell {
    fn from(v: u32) -> Self {
        Cell::Int(v.into())
    }
}
impl From<&str> for Cell {
    fn from(v: &str) -> Self {
        Cell::Text(v.to_owned())
    }
}
impl From<&String> for Cell {
    fn from(v: &String) -> Self {
        Cell::Text(v.clone())
    }
}
impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(v: Option<T>) -> Self {
        v.map_or(Cell::Null, Into::into)
    }
}

/// A projection's table: its first two columns identify a row, and are `chain` and the index of the entry that made it
/// (for [`IDEMPOTENCY`] the key).
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// Name of the projection and of its table.
    pub name: &'static str,
    /// Columns in order.
    pub columns: &'static [&'static str],
}

/// Orders, one row each.
pub const ORDERS: Table = Table {
    name: "orders",
    columns: &[
        "chain",
        "idx",
        "order_id",
        "status",
        "sku_id",
        "buyer",
        "amount",
        "currency",
        "scale",
        "refunded",
        "delivery_mode",
        "key_fingerprint",
        "ledger_proof_id",
        "license_index",
        "deliveries",
        "revision",
        "created_at_us",
        "updated_at_us",
    ],
};
/// Deliveries, one row each.
pub const DELIVERIES: Table = Table {
    name: "deliveries",
    columns: &[
        "chain",
        "idx",
        "delivery_id",
        "order_id",
        "n",
        "status",
        "mode",
        "key_fingerprint",
        "artifact_sha256",
        "ciphertext_sha256",
        "proof_id",
        "proof_index",
        "downloads",
        "revision",
        "updated_at_us",
    ],
};
/// Licences, one row each.
pub const LICENCES: Table =
    Table { name: "licences", columns: &["chain", "idx", "license_id", "order_id", "sku_id", "buyer"] };
/// Delivery proofs, one row each.
pub const DELIVERY_PROOFS: Table =
    Table { name: "delivery_proofs", columns: &["chain", "idx", "proof_id", "order_id", "delivery_id"] };
/// SKUs, one row each.
pub const SKUS: Table = Table {
    name: "skus",
    columns: &[
        "chain",
        "idx",
        "sku_id",
        "status",
        "title",
        "amount",
        "currency",
        "scale",
        "author_id",
        "version",
        "tags",
        "manifest_sha256",
        "listed_index",
        "revision",
    ],
};
/// Idempotency keys, one row each.
pub const IDEMPOTENCY: Table = Table { name: "idempotency", columns: &["chain", "key", "idx"] };

/// All projections, in the order of FORMAT.md.
pub const TABLES: [&Table; 6] = [&ORDERS, &DELIVERIES, &LICENCES, &DELIVERY_PROOFS, &SKUS, &IDEMPOTENCY];

/// A row of a projection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which projection.
    pub table: &'static Table,
    /// One cell for each column.
    pub cells: Vec<Cell>,
}

impl Row {
    fn new(table: &'static Table, cells: Vec<Cell>) -> Row {
        debug_assert_eq!(table.columns.len(), cells.len(), "{}", table.name);
        Row { table, cells }
    }

    /// The cell of a column.
    pub fn cell(&self, column: &str) -> Option<&Cell> {
        let at = self.table.columns.iter().position(|c| *c == column)?;
        self.cells.get(at)
    }

    /// A text column; empty if it is null.
    pub fn text(&self, column: &str) -> &str {
        match self.cell(column) {
            Some(Cell::Text(text)) => text,
            _ => "",
        }
    }

    /// A number; 0 if it is null.
    pub fn int(&self, column: &str) -> i64 {
        match self.cell(column) {
            Some(Cell::Int(n)) => *n,
            _ => 0,
        }
    }

    /// The chain that it is of.
    pub fn chain(&self) -> u32 {
        u32::try_from(self.int("chain")).unwrap_or(0)
    }

    /// An index or count; 0 if it is null.
    pub fn count(&self, column: &str) -> u64 {
        u64::try_from(self.int(column)).unwrap_or(0)
    }
}

/// The row that an event of a case touched, as the state now is.
pub fn case_row(chain: u32, case: &Case, touched: &Touched) -> Option<Row> {
    let order = case.order.as_ref()?;
    let order_id = case.id.to_string();
    let delivery_id = |n| Stream::Delivery(case.id, n).to_string();
    Some(match touched {
        Touched::Order => Row::new(
            &ORDERS,
            vec![
                chain.into(),
                order.index.into(),
                Cell::Text(order_id),
                order.status.as_str().into(),
                (&order.sku_id).into(),
                (&order.buyer).into(),
                order.total.amount.into(),
                (&order.total.currency).into(),
                order.total.scale.into(),
                order.refunded.into(),
                (&order.delivery_mode).into(),
                order.key_fingerprint.as_ref().into(),
                order.ledger_proof_id.as_ref().into(),
                order.license_index.into(),
                (case.deliveries.len() as u64).into(),
                order.revision.into(),
                order.created_at_us.into(),
                order.updated_at_us.into(),
            ],
        ),
        Touched::Delivery(n) => {
            let d = case.deliveries.get(*n as usize - 1)?;
            Row::new(
                &DELIVERIES,
                vec![
                    chain.into(),
                    d.index.into(),
                    Cell::Text(delivery_id(*n)),
                    Cell::Text(order_id),
                    (*n).into(),
                    d.status.as_str().into(),
                    (&d.mode).into(),
                    d.key_fingerprint.as_ref().into(),
                    d.artifact_sha256.as_ref().into(),
                    d.ciphertext_sha256.as_ref().into(),
                    d.proof_id.as_ref().into(),
                    d.proof_index.into(),
                    d.downloads.into(),
                    d.revision.into(),
                    d.updated_at_us.into(),
                ],
            )
        }
        Touched::Licence(index) => Row::new(
            &LICENCES,
            vec![
                chain.into(),
                (*index).into(),
                Cell::Text(license_id(case.id)),
                Cell::Text(order_id),
                (&order.sku_id).into(),
                (&order.buyer).into(),
            ],
        ),
        Touched::Proof(n, index) => Row::new(
            &DELIVERY_PROOFS,
            vec![
                chain.into(),
                (*index).into(),
                Cell::Text(super::case::proof_id(case.id, *n)),
                Cell::Text(order_id),
                Cell::Text(delivery_id(*n)),
            ],
        ),
    })
}

/// All rows of a case: the order's, its deliveries', its licence's, its proofs'.
pub fn case_rows(chain: u32, case: &Case) -> Vec<Row> {
    let Some(order) = &case.order else { return Vec::new() };
    let mut touched = vec![Touched::Order];
    touched.extend(order.license_index.map(Touched::Licence));
    for (n, delivery) in (1..).zip(&case.deliveries) {
        touched.push(Touched::Delivery(n));
        touched.extend(delivery.proof_index.map(|index| Touched::Proof(n, index)));
    }
    touched.iter().filter_map(|t| case_row(chain, case, t)).collect()
}

/// A SKU's row.
pub fn sku_row(chain: u32, sku: &Sku) -> Row {
    let manifest = sku.manifest.as_ref();
    Row::new(
        &SKUS,
        vec![
            chain.into(),
            sku.index.into(),
            (&sku.sku_id).into(),
            if sku.listed { "listed" } else { "withdrawn" }.into(),
            (&sku.title).into(),
            sku.price.amount.into(),
            (&sku.price.currency).into(),
            sku.price.scale.into(),
            sku.author_id.as_ref().into(),
            manifest.map(|m| &m.version).into(),
            manifest.map(|m| &m.tags).filter(|tags| !tags.is_empty()).map(|tags| Cell::Text(tags.join("\n"))).into(),
            manifest.map(|m| &m.sha256).into(),
            sku.listed_index.into(),
            sku.revision.into(),
        ],
    )
}

/// Whether an entry's idempotency hash needs a row: not where the hash gives the order's id, and so its stream.
pub fn needs_idempotency_row(stream: Stream, revision: u64, idem: &Hash) -> bool {
    revision != 1 || stream != Stream::Order(CaseId::of_idempotency(idem))
}

/// The row of an idempotency key, with the index of the first entry that carries it.
pub fn idempotency_row(chain: u32, key: &Hash, index: u64) -> Row {
    Row::new(&IDEMPOTENCY, vec![chain.into(), Cell::Blob(key.0.to_vec()), index.into()])
}
