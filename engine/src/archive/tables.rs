//! Entries as a table in Parquet, beside their lines: for analysts, who query archives with DuckDB, Spark or Athena (FORMAT.md 13.2).
//!
//! A table is made of a file of lines that is complete, and holds nothing that the lines do not. Memory is that of one group of rows.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{
    Decimal128Builder, FixedSizeBinaryBuilder, Int32Builder, Int64Builder, StringBuilder, StringDictionaryBuilder,
    TimestampMicrosecondBuilder,
};
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use flate2::bufread::MultiGzDecoder;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::body::Body;
use crate::domain::money::Money;
use crate::export::{EntryLine, Line};
use crate::hash::Hash;
use crate::json::{Object, Value};
use crate::stream::{CaseId, Stream};

/// Rows of a group.
const ROWS: usize = 32_768;
/// Digits of an amount, and how many of them are after the point: an amount has up to 16 digits and a scale of up to 4 (FORMAT.md 9).
const PRECISION: u8 = 20;
const SCALE: i8 = 4;

/// The columns, in order.
fn schema() -> Schema {
    let text = || DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Schema::new(vec![
        Field::new("chain", DataType::Int32, false),
        Field::new("idx", DataType::Int64, false),
        Field::new("recorded_at", time, false),
        Field::new("stream", DataType::Utf8, false),
        Field::new("stream_kind", text(), false),
        Field::new("order_id", DataType::Utf8, true),
        Field::new("revision", DataType::Int64, false),
        Field::new("event_type", text(), false),
        Field::new("event_id", DataType::Utf8, false),
        Field::new("actor_id", text(), false),
        Field::new("sku_id", text(), true),
        Field::new("amount", DataType::Decimal128(PRECISION, SCALE), true),
        Field::new("currency", text(), true),
        Field::new("entry_hash", DataType::FixedSizeBinary(32), false),
        Field::new("payload", DataType::Utf8, false),
    ])
}

/// Rows that are being gathered.
struct Columns {
    rows: usize,
    chain: Int32Builder,
    idx: Int64Builder,
    recorded_at: TimestampMicrosecondBuilder,
    stream: StringBuilder,
    stream_kind: StringDictionaryBuilder<Int32Type>,
    order_id: StringBuilder,
    revision: Int64Builder,
    event_type: StringDictionaryBuilder<Int32Type>,
    event_id: StringBuilder,
    actor_id: StringDictionaryBuilder<Int32Type>,
    sku_id: StringDictionaryBuilder<Int32Type>,
    amount: Decimal128Builder,
    currency: StringDictionaryBuilder<Int32Type>,
    entry_hash: FixedSizeBinaryBuilder,
    payload: StringBuilder,
}

/// What a stream is of: its name up to its number.
fn kind(stream: Stream) -> &'static str {
    match stream {
        Stream::Ledger => "ledger",
        Stream::Heads => "heads",
        Stream::Legacy => "legacy",
        Stream::Exports => "exports",
        Stream::Chain(_) => "chain",
        Stream::Order(_) => "order",
        Stream::Delivery(..) => "delivery",
        Stream::Sku(_) => "sku",
    }
}

/// The order that an entry is about.
fn order(stream: Stream) -> Option<CaseId> {
    match stream {
        Stream::Order(case) | Stream::Delivery(case, _) => Some(case),
        _ => None,
    }
}

/// The money of a payload: no event has two sums.
fn money(payload: &Object) -> Option<Money> {
    ["total", "price", "refund"].iter().find_map(|name| payload.value(name).and_then(Money::read))
}

/// An amount with [`SCALE`] digits after the point.
fn decimal(money: &Money) -> i128 {
    let missing = i64::from(SCALE).saturating_sub(money.scale).clamp(0, i64::from(SCALE));
    i128::from(money.amount) * 10_i128.pow(missing as u32)
}

fn other(e: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(e)
}

impl Columns {
    fn new() -> Columns {
        let recorded_at = TimestampMicrosecondBuilder::new().with_timezone("UTC");
        let amount = Decimal128Builder::new().with_data_type(DataType::Decimal128(PRECISION, SCALE));
        Columns {
            rows: 0,
            chain: Int32Builder::new(),
            idx: Int64Builder::new(),
            recorded_at,
            stream: StringBuilder::new(),
            stream_kind: StringDictionaryBuilder::new(),
            order_id: StringBuilder::new(),
            revision: Int64Builder::new(),
            event_type: StringDictionaryBuilder::new(),
            event_id: StringBuilder::new(),
            actor_id: StringDictionaryBuilder::new(),
            sku_id: StringDictionaryBuilder::new(),
            amount,
            currency: StringDictionaryBuilder::new(),
            entry_hash: FixedSizeBinaryBuilder::new(32),
            payload: StringBuilder::new(),
        }
    }

    fn push(&mut self, line: &EntryLine<'_>) -> io::Result<()> {
        let h = &line.header;
        let damaged = || io::Error::other(format!("entry {} cannot be read; verify the ledger", h.index));
        let (stream, body) =
            (Stream::parse(h.stream).ok_or_else(damaged)?, Body::decode(line.body).map_err(|_| damaged())?);
        let number = |n: u64| i64::try_from(n).map_err(|_| damaged());
        self.chain.append_value(i32::try_from(h.chain).map_err(|_| damaged())?);
        self.idx.append_value(number(h.index)?);
        self.recorded_at.append_value(h.recorded_at_us);
        self.stream.append_value(h.stream);
        self.stream_kind.append(kind(stream)).map_err(other)?;
        self.order_id.append_option(order(stream).map(|case| case.to_string()));
        self.revision.append_value(number(h.revision)?);
        self.event_type.append(h.event_type).map_err(other)?;
        self.event_id.append_value(h.id().to_string());
        self.actor_id.append(&body.actor_id).map_err(other)?;
        match body.payload.value("sku_id").and_then(Value::as_str) {
            Some(sku) => drop(self.sku_id.append(sku).map_err(other)?),
            None => self.sku_id.append_null(),
        }
        let money = money(&body.payload);
        self.amount.append_option(money.as_ref().map(decimal));
        match &money {
            Some(money) => drop(self.currency.append(&money.currency).map_err(other)?),
            None => self.currency.append_null(),
        }
        self.entry_hash.append_value(line.entry_hash.0).map_err(other)?;
        let payload = String::from_utf8(body.payload.to_canonical()).map_err(other)?;
        self.payload.append_value(payload);
        self.rows += 1;
        Ok(())
    }

    fn finish(&mut self, schema: &Arc<Schema>) -> io::Result<RecordBatch> {
        self.rows = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.chain.finish()),
            Arc::new(self.idx.finish()),
            Arc::new(self.recorded_at.finish()),
            Arc::new(self.stream.finish()),
            Arc::new(self.stream_kind.finish()),
            Arc::new(self.order_id.finish()),
            Arc::new(self.revision.finish()),
            Arc::new(self.event_type.finish()),
            Arc::new(self.event_id.finish()),
            Arc::new(self.actor_id.finish()),
            Arc::new(self.sku_id.finish()),
            Arc::new(self.amount.finish()),
            Arc::new(self.currency.finish()),
            Arc::new(self.entry_hash.finish()),
            Arc::new(self.payload.finish()),
        ];
        RecordBatch::try_new(Arc::clone(schema), columns).map_err(other)
    }
}

/// Writes the entries of a gzip file of lines as a table, which is on stable storage then. Gives the number of rows.
pub(super) fn write(lines: &Path, ledger_id: &Hash, to: &Path) -> io::Result<u64> {
    let schema = Arc::new(schema());
    // The same rows give the same bytes: nothing of the program's version is in the file.
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by("ledger".to_owned())
        .build();
    let mut writer = ArrowWriter::try_new(File::create(to)?, Arc::clone(&schema), Some(properties)).map_err(other)?;
    let mut input = BufReader::new(MultiGzDecoder::new(BufReader::new(File::open(lines)?)));
    let (mut columns, mut line, mut rows) = (Columns::new(), Vec::new(), 0);
    loop {
        line.clear();
        let end = input.read_until(b'\n', &mut line)? == 0;
        if end && columns.rows > 0 || columns.rows == ROWS {
            writer.write(&columns.finish(&schema)?).map_err(other)?;
            writer.flush().map_err(other)?;
        }
        if end {
            break;
        }
        if let Line::Entry(entry) = Line::parse(line.trim_ascii_end(), ledger_id).map_err(other)? {
            columns.push(&entry)?;
            rows += 1;
        }
    }
    let file = writer.into_inner().map_err(other)?;
    file.sync_all()?;
    Ok(rows)
}
