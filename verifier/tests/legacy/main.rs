//! The legacy half of `audit-verify`, from outside.

mod adoption;
mod chain;
mod fixtures;
mod hostile;
mod judgement;
mod stop;
#[cfg(feature = "postgres")]
mod table;
#[cfg(feature = "postgres")]
mod tls;
