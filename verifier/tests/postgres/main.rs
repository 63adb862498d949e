//! A ledger in a PostgreSQL of this test's own, judged from outside by a role that may only read.
#![cfg(feature = "postgres")]

mod database;
mod hostile;
mod standby;
mod vectors;
mod writers;
