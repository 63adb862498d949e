//! The way of an order to its buyer, one command at a time: settled, licensed, asked to be delivered. Whoever takes the steps may stop
//! anywhere and anybody may go on: the next step follows from the order as it is, and a step that was taken is not taken again.

use crate::domain::projection::{Cell, Row};
use crate::json::Object;
use crate::stream::CaseId;

/// The finance ledger's proof, as `order.settle` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinanceProof<'a> {
    /// Its id in the finance ledger.
    pub id: &'a str,
    /// Base64 or hex.
    pub signature: &'a str,
    /// The finance key that signed.
    pub kid: &'a str,
}

/// Why an order cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// It is paid, and nobody brought a proof.
    #[error("the order is not settled: send the finance ledger's proof")]
    ProofMissing,
    /// It keeps the proof that it was settled with; another one must not seem to be taken.
    #[error("the order was settled against another finance proof")]
    AnotherProof,
    /// Its status leads nowhere.
    #[error("an order that is {0} cannot be finalised")]
    Status(String),
}

/// `order.settle` for an order.
pub fn settle_command(case: CaseId, proof: FinanceProof<'_>) -> Object {
    of("order.settle", case)
        .with("ledger_proof_id", proof.id)
        .with("finance_signature", proof.signature)
        .with("finance_kid", proof.kid)
}

fn of(command: &str, case: CaseId) -> Object {
    Object::new().with("command", command).with("order_id", case.to_string())
}

/// The next command, without its actor; `None` once the delivery was asked for.
pub fn next_command(
    case: CaseId,
    order: &Row,
    deliveries: &[Row],
    proof: Option<FinanceProof<'_>>,
) -> Result<Option<Object>, Halt> {
    if let (Some(proof), Some(Cell::Text(settled))) = (proof, order.cell("ledger_proof_id"))
        && settled != proof.id
    {
        return Err(Halt::AnotherProof);
    }
    match (order.text("status"), deliveries.is_empty()) {
        ("paid", _) => Ok(Some(settle_command(case, proof.ok_or(Halt::ProofMissing)?))),
        ("settled", _) => Ok(Some(of("license.issue", case))),
        ("licensed", true) => Ok(Some(of("delivery.request", case))),
        ("licensed" | "finalized", _) => Ok(None),
        (status, _) => Err(Halt::Status(status.to_owned())),
    }
}
