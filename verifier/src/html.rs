//! The report as one self-contained page for working papers: no script, no outside file, printable.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::HumanCount;

use ledger_engine::hash::{from_hex, sha256};

use crate::finding::{Finding, is_unseen};
use crate::legacy::{LegacyReport, print_time};
use crate::report::{ChainReport, Report, Verdict, date};

/// Bars of the chart; more days are shown by month.
const BARS_MAX: usize = 93;
/// Findings on the page; the rest is counted, and listed in full by the text and JSON reports.
const FINDINGS_MAX: usize = 10_000;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid #bbb}\
.verdict{padding:1rem;border:2px solid;margin:1rem 0}.ok{border-color:#18794e;background:#e9f9ee}\
.bad{border-color:#b42318;background:#feeceb}.open{border-color:#946800;background:#fff8e6}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;\
border-bottom:1px solid #ddd}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.facts td.n{text-align:left}\
.findings td:not(:last-child) code{white-space:nowrap}\
code{font:13px/1.4 ui-monospace,monospace;overflow-wrap:anywhere}p.small{color:#555;font-size:13px}\
svg{width:100%;height:auto}pre{white-space:pre-wrap;margin:0}td:first-child{min-width:9rem}@media print{body{margin:0;max-width:none}h2{break-after:avoid}tr{break-inside:avoid}}";

/// Text for HTML, whoever wrote it: markup, and characters that would turn or hide what stands beside them, become visible.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if is_unseen(c) && c != '\n' => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// A number for people: `966,269`.
fn count(n: u64) -> String {
    HumanCount(n).to_string()
}

/// A table of a class, with a head; cells are HTML already.
fn table(class: &str, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b',');
    let cell = |tag: &str, text: &str, number: bool| {
        let class = if number { " class=n" } else { "" };
        format!("<{tag}{class}>{text}</{tag}>")
    };
    let mut rows = rows.into_iter().peekable();
    // A column is one of numbers if its first cell is one.
    let first = rows.peek().map(Vec::as_slice).unwrap_or_default();
    let numbers: Vec<bool> = (0..head.len()).map(|at| first.get(at).is_some_and(|c| is_number(c))).collect();
    let head: String = head.iter().zip(numbers).map(|(h, number)| cell("th", h, number)).collect();
    let rows: String = rows
        .map(|row| format!("<tr>{}</tr>\n", row.iter().map(|c| cell("td", c, is_number(c))).collect::<String>()))
        .collect();
    format!("<table class={class}><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>\n")
}

fn code(text: &str) -> String {
    format!("<code>{}</code>", escape(text))
}

/// Bars of counts by day, or by month if there are many days.
fn chart(by_day: &BTreeMap<i64, u64>) -> String {
    let (Some((first, _)), Some((last, _))) = (by_day.first_key_value(), by_day.last_key_value()) else {
        return String::new();
    };
    let days = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
    let mut bars: BTreeMap<String, u64> = BTreeMap::new();
    for (day, n) in by_day {
        let name = date(*day);
        let name = if days > BARS_MAX { name[..7].to_owned() } else { name };
        *bars.entry(name).or_default() += n;
    }
    let most = bars.values().copied().max().unwrap_or(1).max(1) as f64;
    let width = 900.0 / bars.len() as f64;
    let mut svg = String::from("<svg viewBox=\"0 0 900 190\" role=img aria-label=\"entries by time\">");
    for (i, (name, n)) in bars.iter().enumerate() {
        let (height, x) = (*n as f64 / most * 150.0, i as f64 * width);
        let _ = write!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"#3b6ea5\"><title>{}: {n}</title></rect>",
            160.0 - height,
            (width * 0.85).clamp(0.5, 60.0),
            escape(name),
        );
    }
    let ends = [bars.first_key_value(), bars.last_key_value()];
    let [left, right] = ends.map(|e| e.map_or_else(String::new, |(name, _)| escape(name)));
    let _ = write!(
        svg,
        "<text x=0 y=180 font-size=13>{left}</text><text x=900 y=180 font-size=13 text-anchor=end>{right}</text></svg>"
    );
    format!("{svg}\n<p class=small>The tallest bar is {} entries.</p>\n", count(most as u64))
}

fn in_words(report: &Report) -> &'static str {
    match report.verdict() {
        Verdict::Verified if report.part().is_some() => {
            "What is listed as checked holds: unchanged, in its place, and signed by keys of this ledger. What is not covered is listed \
             too."
        }
        Verdict::Verified if report.export().is_some() => {
            "Every entry is unchanged, in its place and signed by a key of this ledger; every transition was allowed; the files are \
             those that the manifest describes."
        }
        Verdict::Verified => {
            "Every entry is unchanged, in its place and signed by a key of this ledger; every transition was allowed; what is stored \
             besides follows from the entries."
        }
        Verdict::Broken => "The ledger is not what was signed, or breaks its own rules. Each fault is listed below.",
        Verdict::IdentityNotProven => {
            "Nothing contradicts the ledger. Nothing says that it is the right one either: the id that the owner gave was not named."
        }
        Verdict::NotAllChecked => {
            "Nothing contradicts the ledger, but something that was asked for could not be checked."
        }
        Verdict::NotChecked => "The ledger could not be read, so nothing was checked.",
    }
}

fn chain_facts(report: &Report, c: &ChainReport) -> Vec<Vec<String>> {
    let hash = |h: Option<ledger_engine::hash::Hash>| h.map_or_else(|| "not certain".into(), |h| code(&h.to_hex()));
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("entries, streams", format!("{} in {}", count(c.entries), count(c.streams))),
        row("entries that were read", if c.from == 0 { "all".into() } else { format!("from {} on", count(c.from)) }),
        row("commits, signatures", format!("{} with {}", count(c.commits), count(c.signatures))),
        row("head", hash(c.head)),
        row("root (RFC 6962)", hash(c.root)),
        row(
            "private documents",
            format!("{} checked, {} redacted", count(c.private_present), count(c.private_redacted)),
        ),
        row(
            "read models",
            match c.projection_rows {
                Some(n) => format!("{} rows compared with the fold of the entries", count(n)),
                None if report.export().is_some() => "no part of an export".into(),
                None => "not covered: the history is damaged".into(),
            },
        ),
        row(
            "checkpoints",
            match c.covered {
                Some(size) => format!("{}, the largest of size {}", count(c.checkpoints), count(size)),
                None => count(c.checkpoints),
            },
        ),
        row(
            "covered by an anchor",
            match c.anchored {
                Some(size) => {
                    format!("{} entries; {} after it are not", count(size), count(c.entries.saturating_sub(size)))
                }
                None => "none was given: what was cut off is not missed".into(),
            },
        ),
    ];
    if let Some(note) = &c.checkpoint {
        rows.push(row("checkpoint", format!("<pre><code>{}</code></pre>", escape(note))));
    }
    rows
}

/// The parts that pages of both kinds share: everything up to the verdict.
fn top(title: &str, verdict: Verdict, words: &str, source: &str) -> String {
    let class = match verdict {
        Verdict::Verified => "ok",
        Verdict::Broken => "bad",
        _ => "open",
    };
    let (verdict, source) = (verdict.as_str(), escape(source));
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8>\n<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; \
         style-src 'unsafe-inline'\">\n<title>{verdict} {source}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n\
         <div class=\"verdict {class}\"><strong>{verdict}</strong><br>{words}</div>\n"
    )
}

/// Findings, `total` in all.
fn findings(heading: &str, total: u64, list: &[Finding]) -> String {
    let shown = list.len().min(FINDINGS_MAX);
    let count = match total {
        0 => "None.".to_owned(),
        n if n > shown as u64 => format!("{}; the first {} follow.", count(n), count(shown as u64)),
        n => format!("{}, in the order of the chain.", count(n)),
    };
    let mut out = format!("<h2>{heading}</h2>\n<p>{count}</p>\n");
    if shown > 0 {
        // Legacy chains have no number.
        let chains = list.iter().any(|f| f.chain.is_some());
        let rows = list[..shown].iter().map(|f| {
            let chain = f.chain.map_or_else(String::new, |c| c.to_string());
            let meaning = format!("{}<br>{}", escape(f.code.meaning()), code(&f.evidence));
            let cells = [Some(code(f.code.as_str())), chains.then_some(chain), Some(code(&f.place)), Some(meaning)];
            cells.into_iter().flatten().collect()
        });
        let head = [Some("code"), chains.then_some("chain"), Some("place"), Some("meaning, expected and found")];
        let head: Vec<&str> = head.into_iter().flatten().collect();
        out.push_str(&table("findings", &head, rows));
    }
    out
}

fn facts(list: Vec<(&str, Option<String>)>) -> String {
    table("facts", &["", ""], list.into_iter().filter_map(|(name, value)| Some(vec![name.to_owned(), value?])))
}

fn exit_in_words(exit: u8) -> &'static str {
    match exit {
        0 => "verified",
        1 => "broken",
        _ => "could not check all",
    }
}

/// Who judged, and when by the clock of that machine: a working paper has a date.
fn tool() -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let now = ledger_engine::time::rfc3339(i64::try_from(now).unwrap_or_default() * 1_000_000);
    Some(format!("audit-verify {} on {} UTC", env!("CARGO_PKG_VERSION"), now[..16].replace('T', " ")))
}

fn list(out: &mut String, heading: &str, items: &[String]) {
    if items.is_empty() {
        return;
    }
    let _ = write!(out, "<h2>{heading}</h2>\n<ul>");
    out.extend(items.iter().map(|what| format!("<li>{}</li>", escape(what))));
    out.push_str("</ul>\n");
}

/// The page of a ledger, or of a part of one.
pub(crate) fn page(report: &Report) -> String {
    let title = match report.part().map(|part| part.kind) {
        Some("proof") => "Audit of one entry, by its proof file",
        Some("stream") => "Audit of one history in a ledger",
        Some("summaries") => "Audit of an archive, by summaries of its batches",
        Some("batches") => "Audit of some batches of an archive",
        Some(_) => "Audit of what came after an anchor",
        None => "Audit of a ledger",
    };
    let mut out = top(title, report.verdict(), in_words(report), report.source());
    out.push_str(&facts(vec![
        ("source", Some(code(report.source()))),
        ("kind", report.kind().map(escape)),
        ("ledger id", report.ledger_id().map(|id| code(&id.to_hex()))),
        ("origin", report.origin().map(code)),
        ("export", report.export().map(escape)),
        ("digest of what was judged", report.digest().map(|d| code(&d.to_hex()))),
        ("digest of the entries as read", report.rows_digest().map(|d| code(&d.to_hex()))),
        ("exit status", Some(format!("{} ({})", report.exit(), exit_in_words(report.exit())))),
        ("judged by", tool()),
        ("note", Some(escape(report.reason())).filter(|r| !r.is_empty())),
    ]));
    if let Some(part) = report.part() {
        list(&mut out, "Checked", &part.checked);
        list(&mut out, "Not covered", &part.not_covered);
    }
    list(&mut out, "The ledger before", &report.succession_in_words());
    list(&mut out, "The chain of the system before", &report.adoptions_in_words());
    list(&mut out, "Not checked", report.unchecked());
    out.push_str(&findings("Findings", report.faults(), report.findings()));
    for chain in report.chains() {
        let types = chain.by_type.iter().map(|(t, n)| vec![code(t), count(*n)]);
        let facts = table("facts", &["", ""], chain_facts(report, chain));
        let ranges = report.ranges(chain).into_iter().map(|r| {
            let last = (r.to - 1).to_string();
            vec![r.from.to_string(), last, r.standing.as_str().to_owned(), r.why.to_owned()]
        });
        let ranges = table("ranges", &["from entry", "to entry", "standing", "why"], ranges);
        let types = table("counts", &["event", "entries"], types);
        let _ = writeln!(out, "<h2>Chain {}</h2>\n{facts}{ranges}{}{types}", chain.chain, chart(&chain.by_day));
    }
    if !report.keys().is_empty() {
        out.push_str("<h2>Keys</h2>\n");
        let rows = report.keys().iter().map(|k| {
            let retired = k.retired.as_ref().map_or_else(
                || "valid".to_owned(),
                |(size, cut)| {
                    let cut = cut.iter().enumerate().map(|(chain, end)| format!("{end} entries of chain {chain}"));
                    let cut = cut.collect::<Vec<_>>().join(", ");
                    format!("retired by registry entry {size}; its signatures stand for the first {cut}")
                },
            );
            let fingerprint = from_hex(&k.public_key).map_or_else(String::new, |key| code(&sha256(&[&key]).to_hex()));
            let kid = code(&k.kid);
            vec![kid, k.purpose.to_owned(), k.alg.to_owned(), fingerprint, k.enrolled.to_string(), retired]
        });
        let head = ["kid", "purpose", "algorithm", "SHA-256 of the key", "registry entry", "validity"];
        out.push_str(&table("keys", &head, rows));
        out.push_str(
            "<p class=small>The SHA-256 is over the 32 bytes of an Ed25519 key, or the SPKI DER of an RSA key.</p>\n",
        );
    }
    if report.part().is_some() {
        out.push_str("</html>\n");
        return out;
    }
    out.push_str(
        "<p class=small>Checked: canonical bodies, body and entry hashes, links, places, streams, times, transitions, commits and their \
         signatures, key registry, checkpoints, ",
    );
    out.push_str(if report.export().is_some() {
        "digests of files. Not checked: read models, which an export has not; and, "
    } else {
        "read models. Not checked, "
    });
    out.push_str(
        "because nothing in a ledger can show it: whether what was recorded is what happened, and what was never recorded.</p>\n</html>\n",
    );
    out
}

/// The page of a legacy chain.
pub(crate) fn legacy_page(report: &LegacyReport) -> String {
    let words = match report.verdict {
        Verdict::Verified if !report.whole => {
            "Every payload that was read is unchanged, linked to the one before it, and signed by a key of the registry. Not all rows \
             of the table were read: what was left out is named below."
        }
        Verdict::Verified => {
            "Every payload is unchanged, linked to the one before it, and signed by a key of the registry."
        }
        Verdict::Broken => "The chain is not what was signed. Each fault is listed below.",
        Verdict::IdentityNotProven => "Nothing contradicts the chain, but no registry of signers was given.",
        Verdict::NotAllChecked => {
            "Nothing contradicts the chain, but something that was asked for could not be checked."
        }
        Verdict::NotChecked => "It could not be checked.",
    };
    let mut out = top("Audit of legacy audit events", report.verdict, words, &report.source);
    out.push_str(&facts(vec![
        ("source", Some(code(&report.source))),
        ("kind", Some(escape(&report.kind))),
        ("rows", Some(format!("{} read, {} in the chain", count(report.rows), count(report.chain_rows)))),
        ("head", report.head.map(|h| format!("{} (id {})", code(&h.to_hex()), code(&report.head_id)))),
        ("digest of all rows", report.rows_digest.map(|d| code(&d.to_hex()))),
        ("root of all rows", report.root.map(|r| code(&r.to_hex()))),
        ("anchors that hold", Some(count(report.anchors))),
        ("exit status", Some(format!("{} ({})", report.exit(), exit_in_words(report.exit())))),
        ("judged by", tool()),
        ("note", Some(escape(&report.reason)).filter(|r| !r.is_empty())),
    ]));
    list(&mut out, "Adopted by the ledger", &report.adoptions_in_words());
    out.push_str(&findings("Findings", report.faults(), report.findings()));
    out.push_str(&findings("Not covered, or to be weighed", report.notes.len() as u64, &report.notes));
    let types = report.types.iter().map(|(t, n)| vec![code(t), count(*n)]);
    let _ = writeln!(out, "<h2>Rows</h2>\n{}{}", chart(&report.days), table("counts", &["event", "rows"], types));
    out.push_str("<h2>Keys</h2>\n");
    let rows = report.keys.iter().map(|k| {
        let (algorithm, key) = match &k.key {
            Ok((algorithm, fingerprint)) => (escape(algorithm), code(&fingerprint.to_hex())),
            Err(why) => ("refused".to_owned(), escape(why)),
        };
        let window = [("from", k.valid_from), ("revoked", k.revoked_at)];
        let window = window.iter().filter_map(|(word, t)| Some(format!("{word} {}", print_time((*t)?))));
        let window = window.collect::<Vec<_>>().join(", ");
        vec![code(&k.kid), algorithm, key, count(k.signatures), window]
    });
    out.push_str(&table("keys", &["kid", "algorithm", "SHA-256 of the key", "signatures", "window"], rows));
    out.push_str(
        "<p class=small>This format hashes and signs payload and link only: types, actors and times of rows are covered by a saved head \
         or by adoption into a ledger, and by nothing else.</p>\n</html>\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Code;
    use crate::report::KeyReport;

    #[test]
    fn no_text_of_a_ledger_becomes_markup() {
        assert_eq!(escape("<b a=\"1\">&'\u{202e}\u{7}"), "&lt;b a=&quot;1&quot;&gt;&amp;&#39;\\u{202e}\\u{7}");
    }

    /// Whatever stands inside of markup.
    fn tags(page: &str) -> Vec<String> {
        page.split('<').skip(1).map(|tag| tag.split('>').next().unwrap_or_default().to_lowercase()).collect()
    }

    #[test]
    fn pages_run_and_load_nothing() {
        let hostile = "<script src=x>'\"><img src=x onerror=y href=z>";
        let finding = |code| Finding { code, chain: None, place: hostile.into(), evidence: hostile.into() };
        let key = |alg, public_key: &str| KeyReport {
            kid: hostile.into(),
            purpose: "finance",
            alg,
            public_key: public_key.into(),
            enrolled: 1,
            retired: None,
        };
        let native = Report::unreadable(hostile, hostile)
            .of_kind(hostile.into())
            .of_export(hostile.into())
            .with_keys(vec![key("ed25519", "00"), key("rsa-sha256", "30")]);
        let mut legacy = LegacyReport::unreadable(hostile, hostile, hostile);
        legacy.findings.lead(vec![finding(Code::LegacyFork)]);
        legacy.notes = vec![finding(Code::LegacyRangeNotCovered)];
        legacy.counts = BTreeMap::from([(Code::LegacyFork, 1)]);
        legacy.types = BTreeMap::from([(hostile.to_owned(), 1)]);
        legacy.head_id = hostile.into();
        let (native, legacy) = (page(&native), legacy_page(&legacy));
        for page in [&native, &legacy] {
            assert!(page.contains("&lt;script src=x&gt;"));
            for tag in tags(page) {
                let bad = ["script", "img"].iter().any(|name| tag.starts_with(name))
                    || [" src=", " href=", " on"].iter().any(|attribute| tag.contains(attribute));
                assert!(!bad, "{tag}");
            }
        }
        let fingerprint = sha256(&[&[0x30]]).to_hex();
        assert!(native.contains("rsa-sha256") && native.contains(&fingerprint) && !native.contains("(Ed25519)"));
    }

    #[test]
    fn a_part_of_a_table_is_not_called_all_of_it() {
        let mut report = LegacyReport::unreadable("x", "table", "");
        report.verdict = Verdict::Verified;
        assert!(legacy_page(&report).contains("Not all rows of the table were read"));
        report.whole = true;
        assert!(!legacy_page(&report).contains("Not all rows"));
    }

    #[test]
    fn many_days_are_shown_by_month() {
        let few: BTreeMap<i64, u64> = (0..93).map(|d| (d, 2)).collect();
        assert_eq!(chart(&few).matches("<rect").count(), 93);
        let many: BTreeMap<i64, u64> = (0..366).map(|d| (d, 2)).collect();
        assert_eq!(chart(&many).matches("<rect").count(), 13);
        assert_eq!(chart(&BTreeMap::new()), "");
    }
}
