//! A SKU: listed with a price, withdrawn, listed again.

use super::fields::{Fields, text1};
use super::money::Money;
use super::{Illegal, Occurrence, allowed};
use crate::stream::{CaseId, Stream};

/// State of a SKU: the fold of its stream.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sku {
    /// Index of the entry that listed it first.
    pub index: u64,
    /// The client's id.
    pub sku_id: String,
    /// Whether it can be bought.
    pub listed: bool,
    /// Title as last listed.
    pub title: String,
    /// Price as last listed.
    pub price: Money,
    /// Last revision of the stream.
    pub revision: u64,
}

impl Sku {
    /// Applies the next event of the stream to `state` (`None` before the first).
    pub fn apply(state: &mut Option<Sku>, event: &Occurrence<'_>) -> Result<(), Illegal> {
        let Stream::Sku(case) = event.stream else {
            return Err(Illegal("not a SKU's stream".into()));
        };
        let mut f = Fields::new(event.payload);
        let sku_id = f.required("sku_id", text1);
        match event.event_type {
            "sku.listed" => {
                let title = f.required("title", text1);
                let price = f.required("price", Money::read);
                let _author: Option<String> = f.optional("author_id", text1);
                f.finish()?;
                allowed(CaseId::of_sku(&sku_id) == case, || "sku_id does not belong to the stream".into())?;
                allowed(!state.as_ref().is_some_and(|s| s.listed), || "the SKU is listed already".into())?;
                let index = state.as_ref().map_or(event.index, |s| s.index);
                *state = Some(Sku { index, sku_id, listed: true, title, price, revision: event.revision });
                Ok(())
            }
            "sku.withdrawn" => {
                let _reason: Option<String> = f.optional("reason", super::fields::text);
                f.finish()?;
                let Some(sku) = state.as_mut().filter(|s| s.listed && s.sku_id == sku_id) else {
                    return Err(Illegal("the SKU is not listed".into()));
                };
                sku.listed = false;
                sku.revision = event.revision;
                Ok(())
            }
            other => Err(Illegal(format!("{other} is no event of a SKU"))),
        }
    }
}
