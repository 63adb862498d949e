//! What a caller is told when something cannot be done: a status, a stable code, a sentence. What only operators may know
//! goes to the log.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use ledger_engine::domain::decide::{Refusal, RefusalCode};
use ledger_engine::domain::finalisation::Halt;
use ledger_engine::ledger::AppendError;
use ledger_engine::prover::ProveError;
use ledger_engine::store::StoreError;
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

/// Every code the API answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "said in the table of HTTP.md, code by code")]
pub(crate) enum Code {
    InvalidRequest,
    NotAuthorized,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    IdempotencyInProgress,
    RevisionConflict,
    IllegalTransition,
    SkuWithdrawn,
    BodyTooLarge,
    UnsupportedMediaType,
    RangeNotSatisfiable,
    AmountInvalid,
    IdempotencyMismatch,
    LedgerProofInvalid,
    LicenseInvalid,
    InvalidManifest,
    InvalidSignature,
    ManifestMismatch,
    RateLimited,
    Internal,
    LedgerCorrupt,
    Maintenance,
    Overloaded,
    SigningUnavailable,
    StoreUnavailable,
    KernelUnavailable,
    OutcomeUnknown,
    HistoryWentBack,
    ShuttingDown,
}

impl Code {
    /// The status that goes with the code.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Code::InvalidRequest => StatusCode::BAD_REQUEST,
            Code::NotAuthorized => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Code::IdempotencyInProgress | Code::RevisionConflict | Code::IllegalTransition | Code::SkuWithdrawn => {
                StatusCode::CONFLICT
            }
            Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Code::AmountInvalid
            | Code::IdempotencyMismatch
            | Code::LedgerProofInvalid
            | Code::LicenseInvalid
            | Code::InvalidManifest
            | Code::InvalidSignature
            | Code::ManifestMismatch => StatusCode::UNPROCESSABLE_ENTITY,
            Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Code::Internal | Code::LedgerCorrupt => StatusCode::INTERNAL_SERVER_ERROR,
            Code::Maintenance
            | Code::Overloaded
            | Code::SigningUnavailable
            | Code::StoreUnavailable
            | Code::KernelUnavailable
            | Code::OutcomeUnknown
            | Code::HistoryWentBack
            | Code::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Seconds after which to try again, where that helps.
    fn retry_after(self) -> Option<u64> {
        match self {
            Code::Overloaded | Code::RateLimited | Code::ShuttingDown | Code::IdempotencyInProgress => Some(1),
            Code::SigningUnavailable | Code::StoreUnavailable | Code::KernelUnavailable | Code::OutcomeUnknown => {
                Some(2)
            }
            Code::Maintenance | Code::HistoryWentBack => Some(60),
            _ => None,
        }
    }
}

/// Longest message, characters: names in it may be a client's own.
const MESSAGE_CHARS_MAX: usize = 400;

/// `{"ok": false, "error": {…}}`
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// Always false.
    #[schema(example = false)]
    ok: bool,
    error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorDetail {
    code: Code,
    /// A sentence for the caller: what is wrong and what to do.
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    details: Option<serde_json::Value>,
}

/// What reads answer beside their successes.
#[allow(dead_code, reason = "for the documentation")]
#[derive(IntoResponses)]
pub(crate) enum ReadErrors {
    /// INVALID_REQUEST
    #[response(status = 400)]
    Invalid(ErrorBody),
    /// NOT_AUTHORIZED: nobody was recognised
    #[response(status = 401, headers(("WWW-Authenticate" = String)))]
    Unauthenticated(ErrorBody),
    /// NOT_AUTHORIZED: not for this caller
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// NOT_FOUND: not there, or not for this caller to see
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// RATE_LIMITED
    #[response(status = 429, headers(("Retry-After" = u64)))]
    RateLimited(ErrorBody),
    /// INTERNAL, LEDGER_CORRUPT
    #[response(status = 500)]
    Internal(ErrorBody),
    /// STORE_UNAVAILABLE, OVERLOADED
    #[response(status = 503, headers(("Retry-After" = u64)))]
    Unavailable(ErrorBody),
}

/// What writes answer beside their successes.
#[allow(dead_code, reason = "for the documentation")]
#[derive(IntoResponses)]
pub(crate) enum WriteErrors {
    /// INVALID_REQUEST
    #[response(status = 400)]
    Invalid(ErrorBody),
    /// NOT_AUTHORIZED: nobody was recognised
    #[response(status = 401, headers(("WWW-Authenticate" = String)))]
    Unauthenticated(ErrorBody),
    /// NOT_AUTHORIZED: not for this caller
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// NOT_FOUND: not there, or not for this caller to see
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// REQUEST_TIMEOUT: the body came too slowly
    #[response(status = 408)]
    Late(ErrorBody),
    /// ILLEGAL_TRANSITION, REVISION_CONFLICT, SKU_WITHDRAWN, IDEMPOTENCY_IN_PROGRESS
    #[response(status = 409)]
    Conflict(ErrorBody),
    /// BODY_TOO_LARGE
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// UNSUPPORTED_MEDIA_TYPE
    #[response(status = 415)]
    MediaType(ErrorBody),
    /// IDEMPOTENCY_MISMATCH, AMOUNT_INVALID, LEDGER_PROOF_INVALID, LICENSE_INVALID, INVALID_MANIFEST, INVALID_SIGNATURE, MANIFEST_MISMATCH
    #[response(status = 422)]
    Unprocessable(ErrorBody),
    /// RATE_LIMITED
    #[response(status = 429, headers(("Retry-After" = u64)))]
    RateLimited(ErrorBody),
    /// INTERNAL, LEDGER_CORRUPT
    #[response(status = 500)]
    Internal(ErrorBody),
    /// STORE_UNAVAILABLE, SIGNING_UNAVAILABLE, KERNEL_UNAVAILABLE, OUTCOME_UNKNOWN, OVERLOADED, MAINTENANCE, HISTORY_WENT_BACK, SHUTTING_DOWN
    #[response(status = 503, headers(("Retry-After" = u64)))]
    Unavailable(ErrorBody),
}

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) code: Code,
    pub(crate) message: String,
    details: Option<serde_json::Value>,
    retry_after: Option<u64>,
    /// 401 rather than 403: nobody was recognised.
    unauthenticated: bool,
    /// For the log alone.
    internal: Option<String>,
}

impl ApiError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> ApiError {
        ApiError {
            code,
            message: cut(message.into()),
            details: None,
            retry_after: code.retry_after(),
            unauthenticated: false,
            internal: None,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(Code::InvalidRequest, message)
    }

    pub(crate) fn not_found(what: impl Into<String>) -> ApiError {
        ApiError::new(Code::NotFound, what)
    }

    /// Nobody was recognised: 401.
    pub(crate) fn unauthenticated(message: impl Into<String>) -> ApiError {
        ApiError { unauthenticated: true, ..ApiError::new(Code::NotAuthorized, message) }
    }

    /// Somebody was recognised and may not do this: 403.
    pub(crate) fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(Code::NotAuthorized, message)
    }

    pub(crate) fn with_details(self, details: serde_json::Value) -> ApiError {
        ApiError { details: Some(details), ..self }
    }

    pub(crate) fn retry_after(self, seconds: u64) -> ApiError {
        ApiError { retry_after: Some(seconds), ..self }
    }

    /// What the log says beside the answer.
    pub(crate) fn internal(self, text: impl Into<String>) -> ApiError {
        ApiError { internal: Some(text.into()), ..self }
    }

    /// What the log says beside the answer, at a level for everyday faults of callers.
    pub(crate) fn internal_note(self, text: &str) -> ApiError {
        tracing::info!("{}: {text}", self.message);
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        if self.unauthenticated { StatusCode::UNAUTHORIZED } else { self.code.status() }
    }

    /// Logs what the answer does not say, and makes the answer.
    pub(crate) fn to_response(&self) -> HttpResponse {
        if let Some(text) = &self.internal {
            tracing::error!(code = ?self.code, "{text}");
        }
        let mut response = HttpResponse::build(self.status());
        if let Some(seconds) = self.retry_after {
            response.insert_header((RETRY_AFTER, seconds.to_string()));
        }
        if self.unauthenticated {
            response.insert_header((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        }
        let error = ErrorDetail { code: self.code, message: self.message.clone(), details: self.details.clone() };
        response.json(ErrorBody { ok: false, error })
    }
}

/// A message, without the end of one that repeats more of the request than helps.
fn cut(mut message: String) -> String {
    if let Some((at, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
        message.truncate(at);
        message.push('…');
    }
    message
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status()
    }

    fn error_response(&self) -> HttpResponse {
        self.to_response()
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.code {
            RefusalCode::OrderNotFound | RefusalCode::SkuNotFound | RefusalCode::DeliveryNotFound => Code::NotFound,
            RefusalCode::RevisionConflict => Code::RevisionConflict,
            RefusalCode::SkuWithdrawn => Code::SkuWithdrawn,
            RefusalCode::AmountInvalid => Code::AmountInvalid,
            RefusalCode::IllegalTransition => Code::IllegalTransition,
            RefusalCode::IdempotencyMismatch => Code::IdempotencyMismatch,
            RefusalCode::BodyTooLarge => Code::BodyTooLarge,
            RefusalCode::LedgerProofInvalid => Code::LedgerProofInvalid,
            RefusalCode::InvalidManifest => Code::InvalidManifest,
            RefusalCode::InvalidSignature => Code::InvalidSignature,
            RefusalCode::ManifestMismatch => Code::ManifestMismatch,
            _ => Code::InvalidRequest,
        };
        ApiError::new(code, refusal.message)
    }
}

impl From<Halt> for ApiError {
    fn from(halt: Halt) -> Self {
        let code = match halt {
            Halt::ProofMissing | Halt::AnotherProof => Code::LedgerProofInvalid,
            Halt::Status(_) => Code::IllegalTransition,
        };
        ApiError::new(code, halt.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(e: StoreError) -> Self {
        ApiError::from(&e)
    }
}

impl From<&StoreError> for ApiError {
    fn from(e: &StoreError) -> Self {
        let (code, message) = match e {
            StoreError::Corrupt(_) => (
                Code::LedgerCorrupt,
                "the ledger is damaged; its operator must look at it before anything else is done",
            ),
            StoreError::WentBack(_) => (
                Code::HistoryWentBack,
                "the ledger's database lost entries that it had acknowledged; nothing is written until its operator has looked",
            ),
            StoreError::Unknown(_) => (
                Code::OutcomeUnknown,
                "it is not known whether this was recorded; send the same request again with the same Idempotency-Key",
            ),
            _ => (Code::StoreUnavailable, "the ledger's store cannot be reached; nothing was recorded; try again"),
        };
        ApiError::new(code, message).internal(e.to_string())
    }
}

impl From<AppendError> for ApiError {
    fn from(e: AppendError) -> Self {
        match e {
            AppendError::Refused(refusal) => refusal.into(),
            AppendError::Store(e) => ApiError::from(&*e),
            AppendError::Closed => ApiError::new(Code::ShuttingDown, "the server is shutting down; try again"),
            AppendError::Signer(e) => {
                ApiError::new(Code::SigningUnavailable, "nothing can be signed now, so nothing was recorded; try again")
                    .internal(e.to_string())
            }
            e => ApiError::new(Code::Internal, "the server failed; nothing is known to be recorded")
                .internal(e.to_string()),
        }
    }
}

impl From<ProveError> for ApiError {
    fn from(e: ProveError) -> Self {
        match e {
            ProveError::Store(e) => e.into(),
            ProveError::NoEntry { .. } => ApiError::not_found("there is no such entry"),
            e => ApiError::new(Code::Internal, "the proof cannot be made").internal(e.to_string()),
        }
    }
}
