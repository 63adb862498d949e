//! Money: an integer amount of a currency's smallest recorded unit.

use super::fields::{FieldError, Fields};
use crate::json::{Object, Value};

/// An amount with its currency and scale. Two amounts are only added or compared when both agree.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Money {
    /// 1 to 2^53 − 1.
    pub amount: i64,
    /// Three capital letters (ISO 4217).
    pub currency: String,
    /// Decimal digits after the point, 0 to 4.
    pub scale: i64,
}

impl Money {
    /// Reads `{amount, currency, scale}` with exactly these members.
    pub fn read(value: &Value) -> Option<Money> {
        Self::read_fields(value.as_object()?).ok()
    }

    fn read_fields(object: &Object) -> Result<Money, FieldError> {
        let mut f = Fields::new(object);
        let money = Money {
            amount: f.required("amount", |v| v.as_int().filter(|n| *n >= 1)),
            currency: f.required("currency", |v| {
                v.as_str().filter(|c| c.len() == 3 && c.bytes().all(|b| b.is_ascii_uppercase())).map(str::to_owned)
            }),
            scale: f.required("scale", |v| v.as_int().filter(|n| (0..=4).contains(n))),
        };
        f.finish().map(|()| money)
    }

    /// The canonical object.
    pub fn to_value(&self) -> Value {
        Object::new()
            .with("amount", self.amount)
            .with("currency", self.currency.as_str())
            .with("scale", self.scale)
            .into()
    }

    /// Whether sums with `other` have a meaning.
    pub fn same_unit(&self, other: &Money) -> bool {
        self.currency == other.currency && self.scale == other.scale
    }
}

impl std::fmt::Display for Money {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let divisor = 10_i64.pow(self.scale as u32);
        match self.scale {
            0 => write!(f, "{} {}", self.amount, self.currency),
            scale => {
                let width = scale as usize;
                write!(f, "{}.{:0width$} {}", self.amount / divisor, self.amount % divisor, self.currency)
            }
        }
    }
}
