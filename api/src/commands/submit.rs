use std::collections::{HashMap, VecDeque};
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use ledger_engine::domain::command::{Action, COMMAND_BYTES_MAX, Command, OrderRef};
use ledger_engine::ledger::{AppendError, Appended, Ledger, Pending};
use ledger_engine::stream::CaseId;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::CliError;
use crate::directory::{self, Place};
use crate::output::{self, safe};

/// Commands on their way at once. More makes larger commits; the answers keep the order of the lines.
const WINDOW: usize = 2048;

/// Append commands, one JSON object a line
///
/// Every line is answered in order: accepted, repeated (an idempotency key seen before), or refused with a code; the rest
/// go on. Commands: sku.list sku.withdraw order.create payment.capture payment.fail order.settle license.issue
/// delivery.request delivery.encrypt delivery.ready delivery.download delivery.fail delivery.reissue order.finalize
/// order.cancel order.refund subject.erase. Members: engine/COMMANDS.md.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  echo '{\"command\":\"sku.list\",\"actor\":\"service:catalog\",\"sku_id\":\"s-1\",\"title\":\"Font\",\
    \"price\":{\"amount\":1250,\"currency\":\"EUR\",\"scale\":2}}' | ledger submit -\n\n\
    Exit status: 0 all accepted; 1 some refused; 2 stopped (run the same input again: idempotency keys make that safe)."
)]
pub(crate) struct Args {
    /// File of commands, or - for standard input
    file: PathBuf,
}

/// What became of a line.
#[derive(Debug)]
pub(crate) enum Outcome {
    Appended(Appended),
    Refused {
        code: &'static str,
        message: String,
    },
    /// The ledger cannot go on.
    Failed(AppendError),
}

/// Counts of a run.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) accepted: u64,
    pub(crate) repeated: u64,
    pub(crate) refused: u64,
    pub(crate) entries: u64,
    pub(crate) refusals: std::collections::BTreeMap<&'static str, u64>,
    failed: Option<(u64, AppendError)>,
    /// First line and message of each code, where they are collected.
    pub(crate) examples: std::collections::BTreeMap<&'static str, (u64, String)>,
}

impl Summary {
    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Appended(a) if a.repeated => self.repeated += 1,
            Outcome::Appended(a) => {
                self.accepted += 1;
                self.entries += a.entries.len() as u64;
            }
            Outcome::Refused { code, .. } => {
                self.refused += 1;
                *self.refusals.entry(code).or_default() += 1;
            }
            Outcome::Failed(_) => {}
        }
    }
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let ledger = directory::open(place).await?;
    let name = args.file.display().to_string();
    let (input, length): (Box<dyn AsyncBufRead + Unpin + Send>, Option<u64>) = if args.file.as_os_str() == "-" {
        (Box::new(BufReader::new(tokio::io::stdin())), None)
    } else {
        let file = tokio::fs::File::open(&args.file).await.map_err(|e| CliError::Io(name.clone(), e))?;
        let length = file.metadata().await.ok().map(|m| m.len());
        (Box::new(BufReader::with_capacity(1 << 20, file)), length)
    };
    let progress = progress_bar(length);
    let started = std::time::Instant::now();
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let result = submit_lines(&ledger, input, &progress, |line, outcome, drained| {
        let text = if json { Some(to_json(line, outcome)) } else { to_text(line, outcome) };
        if let Some(text) = text {
            progress.suspend(|| writeln!(out, "{text}"))?;
        }
        // An answer is worth something when it is seen, so nothing stays in the buffer while we wait.
        if drained { out.flush() } else { Ok(()) }
    })
    .await;
    progress.finish_and_clear();
    let closed = ledger.shutdown().await;
    let summary = result.map_err(|e| e.named(&name))?;
    closed?;
    out.flush().map_err(|e| CliError::Io("standard output".into(), e))?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = summary.entries as f64 / seconds.max(1e-9);
    if json {
        let object = serde_json::json!({
            "ok": summary.refused == 0, "accepted": summary.accepted, "repeated": summary.repeated,
            "refused": summary.refused, "entries": summary.entries, "refusals": summary.refusals,
        });
        output::line(&object.to_string())?;
    } else {
        let Summary { accepted, repeated, refused, entries, .. } = summary;
        let text = format!(
            "{accepted} accepted, {repeated} repeated, {refused} refused; {entries} entries in {seconds:.1} s ({rate:.0}/s)"
        );
        output::line(&text)?;
    }
    Ok(u8::from(summary.refused > 0))
}

fn progress_bar(length: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = |text: &str| ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar());
    match length {
        Some(n) => ProgressBar::new(n).with_style(style("{bar:40} {percent}% {bytes_per_sec}, {eta} left, {msg}")),
        None => ProgressBar::new_spinner().with_style(style("{spinner} {bytes} read, {msg}")),
    }
}

/// Why lines could not all be submitted.
#[derive(Debug)]
pub(crate) enum SubmitError {
    Read(std::io::Error),
    Write(std::io::Error),
    /// The first line that the ledger failed to append, and the last one that was read. Every line up to that has its answer.
    Stopped {
        line: u64,
        read: u64,
        error: AppendError,
    },
}

impl SubmitError {
    pub(crate) fn named(self, input: &str) -> CliError {
        match self {
            SubmitError::Read(e) => CliError::Io(input.to_owned(), e),
            SubmitError::Write(e) => CliError::Io("standard output".into(), e),
            SubmitError::Stopped { line, read, error } => CliError::Usage(format!(
                "line {line} could not be appended ({}): {error}\nNothing after line {read} was read. Lines answered as failed are not in the \
                 ledger, unless their code is OUTCOME_UNKNOWN. Mend the cause, then submit them and the rest again",
                error.code()
            )),
        }
    }
}

struct Waiting {
    line: u64,
    bytes: u64,
    answer: Result<Pending, Outcome>,
}

/// Submits lines and hands each outcome to `seen` in line order, with whether no further outcome is at hand.
pub(crate) async fn submit_lines(
    ledger: &Ledger,
    mut input: Box<dyn AsyncBufRead + Unpin + Send>,
    progress: &ProgressBar,
    mut seen: impl FnMut(u64, &Outcome, bool) -> std::io::Result<()>,
) -> Result<Summary, SubmitError> {
    let mut labels: HashMap<String, Option<CaseId>> = HashMap::new();
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    let mut summary = Summary::default();
    let (mut number, mut buffer) = (0, Vec::new());
    // After a failure nothing more is read, but what is on its way may still be stored and is answered.
    while summary.failed.is_none() {
        // With answers outstanding, an idle input must not hold them back.
        let read = if waiting.is_empty() {
            read_line(&mut input, &mut buffer).await
        } else if waiting.len() >= WINDOW {
            finish_first(&mut waiting, &mut summary, progress, &mut seen).await?;
            continue;
        } else {
            tokio::select! {
                biased;
                read = read_line(&mut input, &mut buffer) => read,
                () = first_ready(&mut waiting) => {
                    finish_first(&mut waiting, &mut summary, progress, &mut seen).await?;
                    continue;
                }
            }
        };
        let bytes = match read.map_err(SubmitError::Read)? {
            0 => break,
            n => n as u64,
        };
        number += 1;
        let line = buffer.strip_suffix(b"\n").unwrap_or(&buffer);
        if !line.iter().all(u8::is_ascii_whitespace) {
            let too_long = bytes > buffer.len() as u64;
            let answer = submit_line(ledger, line, too_long.then_some(bytes as usize), &mut labels).await;
            waiting.push_back(Waiting { line: number, bytes, answer });
        }
        buffer.clear();
    }
    while !waiting.is_empty() {
        finish_first(&mut waiting, &mut summary, progress, &mut seen).await?;
    }
    match summary.failed.take() {
        Some((line, e)) => Err(SubmitError::Stopped { line, read: number, error: e }),
        None => Ok(summary),
    }
}

/// Appends to `buffer` up to the end of the line. Of a line that is too long, only its beginning is kept; the number returned is
/// how long it was. Safe to cancel: what was read stays in `buffer`.
async fn read_line(input: &mut (dyn AsyncBufRead + Unpin + Send), buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    let room = (COMMAND_BYTES_MAX + 2) as u64 - buffer.len() as u64;
    input.take(room).read_until(b'\n', buffer).await?;
    let mut total = buffer.len();
    if buffer.len() > COMMAND_BYTES_MAX + 1 && !buffer.ends_with(b"\n") {
        loop {
            let available = input.fill_buf().await?;
            let end = available.iter().position(|b| *b == b'\n');
            let used = end.map_or(available.len(), |at| at + 1);
            input.consume(used);
            total += used;
            if end.is_some() || used == 0 {
                break;
            }
        }
    }
    Ok(total)
}

async fn submit_line(
    ledger: &Ledger,
    line: &[u8],
    too_long: Option<usize>,
    labels: &mut HashMap<String, Option<CaseId>>,
) -> Result<Pending, Outcome> {
    use ledger_engine::domain::command::CommandError;
    let refused = |e: &CommandError| Outcome::Refused { code: e.code(), message: e.to_string() };
    if let Some(bytes) = too_long {
        return Err(refused(&CommandError::TooLarge(bytes)));
    }
    let command = Command::parse(line).map_err(|e| refused(&e))?;
    let resolved = match &command.order {
        Some(OrderRef::Label(label)) => labels.get(label).copied().flatten(),
        _ => None,
    };
    let pending = ledger.submit(&command, resolved, "SUBMIT").await.map_err(outcome_of);
    if let Some(label) = command.label {
        labels.insert(label, pending.as_ref().ok().map(|p| p.case));
    }
    // An order's price is read when it is decided; a listing on another chain must be durable by then.
    let is_sku = matches!(command.action, Action::ListSku { .. } | Action::WithdrawSku { .. });
    match pending {
        Ok(pending) if is_sku && ledger.genesis().chains > 1 => Err(match pending.wait().await {
            Ok(appended) => Outcome::Appended(appended),
            Err(e) => outcome_of(e),
        }),
        other => other,
    }
}

fn outcome_of(e: AppendError) -> Outcome {
    match e {
        AppendError::Refused(r) => Outcome::Refused { code: r.code.as_str(), message: r.message },
        e => Outcome::Failed(e),
    }
}

/// Waits until the first waiting line has its answer, and keeps it there.
async fn first_ready(waiting: &mut VecDeque<Waiting>) {
    if let Some(first) = waiting.front_mut()
        && let Ok(pending) = &mut first.answer
    {
        let answer = pending.answered().await;
        first.answer = Err(answer.map_or_else(outcome_of, Outcome::Appended));
    }
}

async fn finish_first(
    waiting: &mut VecDeque<Waiting>,
    summary: &mut Summary,
    progress: &ProgressBar,
    seen: &mut impl FnMut(u64, &Outcome, bool) -> std::io::Result<()>,
) -> Result<(), SubmitError> {
    first_ready(waiting).await;
    let Some(Waiting { line, bytes, answer: Err(outcome) }) = waiting.pop_front() else { return Ok(()) };
    progress.inc(bytes);
    summary.count(&outcome);
    if summary.refused > 0 {
        progress.set_message(format!("{} refused", summary.refused));
    }
    if let Outcome::Failed(e) = &outcome {
        summary.failed.get_or_insert_with(|| (line, e.clone()));
    }
    let next_is_ready = waiting.front().is_some_and(|w| w.answer.as_ref().map_or(true, Pending::is_ready));
    let drained = !next_is_ready;
    seen(line, &outcome, drained).map_err(SubmitError::Write)
}

fn to_text(line: u64, outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Refused { code, message } => Some(format!("line {line}: {code}: {}", safe(message))),
        Outcome::Failed(e) => Some(format!("line {line}: failed: {}: {}", e.code(), safe(&e.to_string()))),
        Outcome::Appended(_) => None,
    }
}

fn to_json(line: u64, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Appended(a) => {
            let entries: Vec<_> = a
                .entries
                .iter()
                .map(|e| {
                    serde_json::json!({
                        "chain": a.chain, "index": e.index, "id": e.event_id.to_string(), "stream": e.stream,
                        "revision": e.revision, "event_type": e.event_type,
                    })
                })
                .collect();
            let outcome = if a.repeated { "repeated" } else { "accepted" };
            let case = a.case.map(|c| c.to_string());
            let name = if a.entries.first().is_some_and(|e| e.stream.starts_with("sku-")) { "sku" } else { "order_id" };
            serde_json::json!({ "line": line, "outcome": outcome, name: case, "entries": entries }).to_string()
        }
        Outcome::Refused { code, message } => {
            serde_json::json!({ "line": line, "outcome": "refused", "code": code, "message": message }).to_string()
        }
        Outcome::Failed(e) => {
            serde_json::json!({ "line": line, "outcome": "failed", "code": e.code(), "message": e.to_string() })
                .to_string()
        }
    }
}
