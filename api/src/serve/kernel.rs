//! The Kernel: who signs manifests, asked back before a SKU is listed, where the settings name it. What it does not confirm is not listed, and
//! neither is anything while it is away.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{ApiError, Code};
use super::settings::KernelSettings;
use crate::CliError;

/// Largest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How often the Kernel is asked whether it is there.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(30);

/// A connection to the Kernel.
pub(crate) struct Kernel {
    client: reqwest::Client,
    url: reqwest::Url,
    /// Whether the last call was answered.
    answered: AtomicBool,
}

/// `{"valid": true}`, or not, with the reason.
#[derive(Deserialize)]
struct Judgement {
    valid: bool,
    reason: Option<String>,
}

fn away(why: impl std::fmt::Display) -> ApiError {
    let message = "the Kernel did not confirm the manifest, since it did not answer; nothing was recorded; try again";
    ApiError::new(Code::KernelUnavailable, message).internal(why.to_string())
}

impl Kernel {
    /// Reads certificates. The Kernel itself is not asked yet.
    pub(crate) fn new(settings: &KernelSettings) -> Result<Kernel, CliError> {
        let read = |path: &Path| std::fs::read(path).map_err(|e| CliError::Io(path.display().to_string(), e));
        let direct = reqwest::redirect::Policy::none();
        let mut builder = reqwest::Client::builder().timeout(settings.timeout).redirect(direct);
        let usage = |what: &str, e: &dyn std::fmt::Display| CliError::Usage(format!("{what}: {e}"));
        if let Some(ca) = &settings.ca {
            let own = reqwest::Certificate::from_pem_bundle(&read(ca)?).map_err(|e| usage("kernel_ca", &e))?;
            builder = builder.tls_certs_only(own);
        }
        if let Some((certificate, key)) = &settings.client {
            let pem = zeroize::Zeroizing::new([read(certificate)?, read(key)?].concat());
            let identity = reqwest::Identity::from_pem(&pem).map_err(|e| usage("kernel_client_certificate", &e))?;
            builder = builder.identity(identity);
        }
        let client = builder.build().map_err(|e| usage("kernel_api_url", &e))?;
        Ok(Kernel { client, url: settings.url.clone(), answered: AtomicBool::new(false) })
    }

    /// Whether the last real call was answered.
    pub(crate) fn answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.url.as_str().trim_end_matches('/'))
    }

    /// Asks whether it is there.
    pub(crate) async fn probe(&self) {
        let asked = self.client.get(self.path("/health")).send().await.and_then(reqwest::Response::error_for_status);
        if let Err(e) = &asked {
            tracing::warn!("the Kernel does not answer: {e}");
        }
        self.answered.store(asked.is_ok(), Ordering::Relaxed);
    }

    /// Asks the Kernel whether a manifest is (still) one of its own.
    pub(crate) async fn confirm(&self, manifest: &RawValue) -> Result<(), ApiError> {
        let asked = self.ask(manifest).await;
        self.answered.store(asked.is_ok(), Ordering::Relaxed);
        let judgement = asked?;
        if judgement.valid {
            return Ok(());
        }
        let reason: String =
            judgement.reason.unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect();
        let message = format!("the Kernel does not confirm the manifest: {reason}");
        Err(ApiError::new(Code::InvalidManifest, message))
    }

    async fn ask(&self, manifest: &RawValue) -> Result<Judgement, ApiError> {
        let request =
            self.client.post(self.path("/manifests/verify")).json(&serde_json::json!({ "manifest": manifest }));
        let mut response =
            request.send().await.and_then(reqwest::Response::error_for_status).map_err(|e| away(e.without_url()))?;
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| away(e.without_url()))? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(away("an answer of more than 64 KiB"));
            }
            body.extend_from_slice(&piece);
        }
        serde_json::from_slice(&body).map_err(|e| away(format!("no answer of the contract: {e}")))
    }
}
