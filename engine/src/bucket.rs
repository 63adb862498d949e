//! Buckets of S3 whose objects are locked (Object Lock), and those of artifacts and deliveries, through the AWS SDK. Calls block.
//!
//! A lock protects a version of an object, not its key: whoever may put objects can put another version over it, and whoever may
//! delete can hide it. So every object here is read by its version. Requests of the SDK are tried again with back-off, as they were:
//! none is ever sent without the lock that it was to have. Checksums are Content-MD5, which every server with Object Lock must check.

use std::io::{Read as _, Seek as _, Write};
use std::path::Path;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    CompletedMultipartUpload, CompletedPart, DefaultRetention, ObjectLockEnabled, ObjectLockLegalHold,
    ObjectLockLegalHoldStatus, ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode,
};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::http::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Md5;
use sha2::{Digest as _, Sha256};

use crate::export::record::Retention;
use crate::hash::Hash;

/// Larger objects are put in parts of this size.
const PART_BYTES: u64 = 32 << 20;
/// How often a request is tried.
const ATTEMPTS: u32 = 5;
/// How long one attempt may take, but for reading an answer's body: a part passes at 190 kB/s.
const ATTEMPT_TIME: Duration = Duration::from_secs(180);
/// How long nothing may come of a body.
const SILENCE: Duration = Duration::from_secs(30);

/// What went wrong with a bucket. The text says whose fault it is and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// The bucket cannot be used as it is, or as it is named.
    #[error("{0}")]
    Unfit(String),
    /// Not allowed: the action, and what the server said.
    #[error("the server does not allow {0} ({1}); give the exporter's user that right, or other credentials")]
    Denied(&'static str, String),
    /// There is no such object, or version.
    #[error("{0} is not there")]
    Missing(String),
    /// The server is away, or failing. The same may succeed later.
    #[error("{0}: {1}; try again when the server is well")]
    Failing(&'static str, String),
    /// A local file.
    #[error("{0}; check the path and the free space")]
    File(String),
}

/// What a bucket does with objects that say nothing of their retention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRule {
    /// `COMPLIANCE` or `GOVERNANCE`.
    pub mode: String,
    /// How long, in days.
    pub days: i64,
}

/// An object of which the head was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Which version it is.
    pub version: Option<String>,
    /// How many bytes.
    pub bytes: u64,
    /// Its member `sha256` of the metadata.
    pub sha256: Option<String>,
    /// Its lock; `None` if it has none.
    pub retention: Option<Retention>,
}

/// A version of an object, or a marker that hides one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The key, without the bucket's prefix.
    pub key: String,
    /// Its id.
    pub id: String,
    /// Whether it is what one gets without naming a version.
    pub latest: bool,
    /// Whether it is a delete marker.
    pub marker: bool,
    /// When it came, milliseconds since 1970, as the server says.
    pub at_ms: i64,
}

/// A bucket and a prefix in it.
pub struct Bucket {
    client: Client,
    bucket: String,
    /// Empty, or with a slash at its end.
    prefix: String,
    runtime: Option<tokio::runtime::Runtime>,
    part_bytes: u64,
}

/// `s3://BUCKET[/PREFIX]`, put together in the one way that names an archive.
pub fn url_of(bucket: &str, prefix: &str) -> String {
    format!("s3://{bucket}/{prefix}").trim_end_matches('/').to_owned()
}

/// `s3://BUCKET[/PREFIX]`, taken apart.
pub fn parse_url(url: &str) -> Option<(String, String)> {
    let rest = url.strip_prefix("s3://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let named = (3..=63).contains(&bucket.len()) && bucket.chars().all(plain);
    let prefix = prefix.trim_matches('/');
    let clean = !prefix.split('/').any(|part| part == "." || part == "..") && !prefix.chars().any(char::is_control);
    (named && clean).then(|| (bucket.to_owned(), prefix.to_owned()))
}

fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect::<String>().trim_end().to_owned()
}

/// What a request failed with; `action` is the right that it needs.
fn fault<E>(action: &'static str, error: &SdkError<E, Response>) -> BucketError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let SdkError::ServiceError(service) = error else {
        let text = line(&DisplayErrorContext(error).to_string());
        return match error {
            SdkError::ConstructionFailure(_) => {
                BucketError::Unfit(format!("{action}: no request can be made: {text}; check credentials and region"))
            }
            _ => BucketError::Failing(action, text),
        };
    };
    let (raw, meta) = (service.raw(), service.err().meta());
    let status = raw.status().as_u16();
    // Answers without a body have no code.
    let code = meta.code().unwrap_or(match status {
        301 => "PermanentRedirect",
        403 => "AccessDenied",
        404 => "NotFound",
        _ => "an error without a code",
    });
    let request = service.err().meta().request_id().map(|id| format!(", request {id}")).unwrap_or_default();
    let said = line(&format!("{code}, HTTP {status}{request}: {}", meta.message().unwrap_or_default()));
    match code {
        "NoSuchBucket" => {
            BucketError::Unfit(format!("there is no such bucket ({said}); check its name, the endpoint and the region"))
        }
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            let region = raw.headers().get("x-amz-bucket-region").unwrap_or("another one");
            BucketError::Unfit(format!(
                "the bucket is not in this region ({said}); set S3_REGION to its region: {region}"
            ))
        }
        "RequestTimeTooSkewed" => {
            BucketError::Unfit(format!("this machine's clock is not the server's ({said}); set the clocks (NTP)"))
        }
        code if CREDENTIALS.contains(&code) => {
            BucketError::Unfit(format!("the server does not take these credentials ({said}); renew them"))
        }
        "ObjectLockConfigurationNotFoundError" => BucketError::Unfit(
            "Object Lock is off; make a bucket with it, since it cannot be trusted without".to_owned(),
        ),
        "AccessDenied" | "AllAccessDisabled" | "Forbidden" => BucketError::Denied(action, said),
        "NoSuchKey" | "NoSuchVersion" | "NotFound" => BucketError::Missing(said),
        _ if status >= 500 || status == 429 || code == "SlowDown" => BucketError::Failing(action, said),
        _ => BucketError::Unfit(format!("the server refuses {action} ({said})")),
    }
}

/// Codes of answers to credentials that are not taken.
const CREDENTIALS: [&str; 5] =
    ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"];

fn file(e: std::io::Error) -> BucketError {
    BucketError::File(e.to_string())
}

fn md5_of(bytes: &[u8]) -> String {
    STANDARD.encode(Md5::digest(bytes))
}

impl Bucket {
    /// Opens `s3://BUCKET[/PREFIX]`; nothing is asked yet. Endpoint, region and credentials come from `S3_ENDPOINT`, `S3_REGION`,
    /// `S3_ACCESS_KEY_ID` and `S3_SECRET_ACCESS_KEY`, and what these do not say by the SDK's usual chain.
    pub fn open(url: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Bucket, BucketError> {
        let (bucket, prefix) = parse_url(url).ok_or_else(|| {
            BucketError::Unfit(format!("{url:?} is no s3://BUCKET or s3://BUCKET/PREFIX; check the name"))
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("ledger-s3")
            .enable_all()
            .build()
            .map_err(|e| BucketError::Failing("a runtime", e.to_string()))?;
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(5))
            .operation_attempt_timeout(ATTEMPT_TIME)
            .read_timeout(ATTEMPT_TIME)
            .build();
        let mut config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts);
        if let Some(region) = variable("S3_REGION") {
            config = config.region(Region::new(region));
        }
        match (variable("S3_ACCESS_KEY_ID"), variable("S3_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => {
                config = config.credentials_provider(Credentials::new(id, secret, None, None, "S3_ACCESS_KEY_ID"));
            }
            (None, None) => {}
            _ => {
                let why = "S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY go together; set both, or neither";
                return Err(BucketError::Unfit(why.to_owned()));
            }
        }
        let endpoint = variable("S3_ENDPOINT");
        let shared = runtime.block_on(config.load());
        let mut config = aws_sdk_s3::config::Builder::from(&shared)
            // Servers other than Amazon's know no trailing checksums, and have no host for each bucket.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .force_path_style(endpoint.is_some());
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint);
        }
        if shared.region().is_none() {
            config = config.region(Region::new("us-east-1"));
        }
        let prefix = if prefix.is_empty() { prefix } else { prefix + "/" };
        Ok(Bucket {
            client: Client::from_conf(config.build()),
            bucket,
            prefix,
            runtime: Some(runtime),
            part_bytes: PART_BYTES,
        })
    }

    /// Puts larger objects in parts of so many bytes: at least 5 MiB.
    #[must_use]
    pub fn with_parts_of(mut self, part_bytes: u64) -> Bucket {
        self.part_bytes = part_bytes;
        self
    }

    /// `s3://BUCKET[/PREFIX]`, however it was written.
    pub fn url(&self) -> String {
        url_of(&self.bucket, &self.prefix)
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn block<T>(&self, work: impl Future<Output = Result<T, BucketError>>) -> Result<T, BucketError> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(work),
            None => Err(BucketError::Failing("a runtime", "it is closed".to_owned())),
        }
    }

    /// The rule that holds for objects which say nothing. An error unless Object Lock is on.
    pub fn lock_rule(&self) -> Result<Option<DefaultRule>, BucketError> {
        self.block(async {
            let asked = self.client.get_object_lock_configuration().bucket(&self.bucket).send().await;
            let answer = asked.map_err(|e| fault("s3:GetBucketObjectLockConfiguration", &e))?;
            let config = answer.object_lock_configuration();
            if config.and_then(|c| c.object_lock_enabled()) != Some(&ObjectLockEnabled::Enabled) {
                return Err(BucketError::Unfit("Object Lock is off; use a bucket that was made with it".to_owned()));
            }
            let rule = config.and_then(|c| c.rule()).and_then(|r| r.default_retention());
            let read = |r: &DefaultRetention| DefaultRule {
                mode: r.mode().map_or_else(String::new, |m| m.as_str().to_owned()),
                // No year is longer.
                days: i64::from(r.days().unwrap_or(0)) + 366 * i64::from(r.years().unwrap_or(0)),
            };
            Ok(rule.map(read))
        })
    }

    /// All versions and markers of keys below a prefix, newest first for each key.
    pub fn versions(&self, under: &str) -> Result<Vec<Version>, BucketError> {
        self.versions_after(under, None)
    }

    /// The same, of keys that come after one: what lies before it costs nothing.
    pub fn versions_after(&self, under: &str, after: Option<&str>) -> Result<Vec<Version>, BucketError> {
        self.block(async {
            let mut found = Vec::new();
            let (mut key_marker, mut version_marker) = (after.map(|key| self.key(key)), None);
            loop {
                let asked = self
                    .client
                    .list_object_versions()
                    .bucket(&self.bucket)
                    .prefix(self.key(under))
                    .set_key_marker(key_marker)
                    .set_version_id_marker(version_marker)
                    .send()
                    .await;
                let page = asked.map_err(|e| fault("s3:ListBucketVersions", &e))?;
                let at = |t: Option<&DateTime>| t.and_then(|t| t.to_millis().ok()).unwrap_or_default();
                let own = |key: Option<&str>| key.and_then(|k| k.strip_prefix(&self.prefix)).map(str::to_owned);
                for v in page.versions() {
                    let Some(key) = own(v.key()) else { continue };
                    let (id, latest) = (v.version_id().unwrap_or("null").to_owned(), v.is_latest() == Some(true));
                    found.push(Version { key, id, latest, marker: false, at_ms: at(v.last_modified()) });
                }
                for m in page.delete_markers() {
                    let Some(key) = own(m.key()) else { continue };
                    let (id, latest) = (m.version_id().unwrap_or("null").to_owned(), m.is_latest() == Some(true));
                    found.push(Version { key, id, latest, marker: true, at_ms: at(m.last_modified()) });
                }
                if page.is_truncated() != Some(true) {
                    break;
                }
                key_marker = page.next_key_marker().map(str::to_owned);
                version_marker = page.next_version_id_marker().map(str::to_owned);
                if key_marker.is_none() {
                    let why = "a list goes on without saying where".to_owned();
                    return Err(BucketError::Failing("s3:ListBucketVersions", why));
                }
            }
            found.sort_by(|a, b| a.key.cmp(&b.key).then(b.latest.cmp(&a.latest)).then(b.at_ms.cmp(&a.at_ms)));
            Ok(found)
        })
    }

    /// The head of an object. A lock that the head does not show is asked for by itself: who may not see it is told so.
    pub fn head(&self, key: &str, version: Option<&str>) -> Result<Head, BucketError> {
        self.block(async {
            let request = self.client.head_object().bucket(&self.bucket).key(self.key(key));
            let asked = request.set_version_id(version.map(str::to_owned)).send().await;
            let head = asked.map_err(|e| named(key, fault("s3:GetObjectVersion", &e)))?;
            let held = head.object_lock_legal_hold_status() == Some(&ObjectLockLegalHoldStatus::On);
            let mut retention = match (head.object_lock_mode(), head.object_lock_retain_until_date()) {
                (Some(mode), Some(until)) => {
                    Some(Retention { mode: mode.as_str().to_owned(), until_s: until.secs(), legal_hold: held })
                }
                _ => None,
            };
            if retention.is_none() {
                retention = self.retention(key, version, held).await?;
            }
            Ok(Head {
                version: head.version_id().map(str::to_owned),
                bytes: head.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or_default(),
                sha256: head.metadata().and_then(|m| m.get("sha256").cloned()),
                retention,
            })
        })
    }

    /// Bytes of an object. Its lock is not asked for, which takes a right of its own.
    pub fn bytes(&self, key: &str) -> Result<u64, BucketError> {
        self.block(async {
            let asked = self.client.head_object().bucket(&self.bucket).key(self.key(key)).send().await;
            let head = asked.map_err(|e| named(key, fault("s3:GetObject", &e)))?;
            Ok(head.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or_default())
        })
    }

    async fn retention(
        &self,
        key: &str,
        version: Option<&str>,
        legal_hold: bool,
    ) -> Result<Option<Retention>, BucketError> {
        let request = self.client.get_object_retention().bucket(&self.bucket).key(self.key(key));
        match request.set_version_id(version.map(str::to_owned)).send().await {
            Ok(found) => Ok(found.retention().and_then(|r| {
                let (mode, until) = (r.mode()?, r.retain_until_date()?);
                Some(Retention { mode: mode.as_str().to_owned(), until_s: until.secs(), legal_hold })
            })),
            Err(e) => match (fault("s3:GetObjectRetention", &e), e.code()) {
                (denied @ (BucketError::Denied(..) | BucketError::Failing(..)), _) => Err(denied),
                // Nothing was said of the object.
                (unfit, Some(code)) if code == "RequestTimeTooSkewed" || CREDENTIALS.contains(&code) => Err(unfit),
                // The object has none.
                _ => Ok(None),
            },
        }
    }

    /// Reads an object into `out`: its SHA-256 and length. One of more than `most` bytes is not read to its end, and has another digest.
    pub fn get(
        &self,
        key: &str,
        version: Option<&str>,
        most: u64,
        out: &mut (dyn Write + Send),
    ) -> Result<(Hash, u64), BucketError> {
        self.block(async {
            let request = self.client.get_object().bucket(&self.bucket).key(self.key(key));
            let asked = request.set_version_id(version.map(str::to_owned)).send().await;
            let answer = asked.map_err(|e| named(key, fault("s3:GetObjectVersion", &e)))?;
            let (mut body, mut sha256, mut bytes) = (answer.body, Sha256::new(), 0u64);
            loop {
                let next = tokio::time::timeout(SILENCE, body.try_next()).await;
                let chunk = match next {
                    Ok(Ok(Some(chunk))) => chunk,
                    Ok(Ok(None)) => break,
                    Ok(Err(e)) => return Err(BucketError::Failing("s3:GetObjectVersion", line(&e.to_string()))),
                    Err(_) => {
                        let why = format!("{key} came to a halt after {bytes} bytes");
                        return Err(BucketError::Failing("s3:GetObjectVersion", why));
                    }
                };
                bytes += chunk.len() as u64;
                if bytes > most {
                    break;
                }
                sha256.update(&chunk);
                out.write_all(&chunk).map_err(file)?;
            }
            Ok((Hash(sha256.finalize().into()), bytes))
        })
    }

    /// Puts a file, locked. Returns the new version.
    pub fn put(
        &self,
        key: &str,
        path: &Path,
        metadata: &[(&str, String)],
        retention: &Retention,
    ) -> Result<String, BucketError> {
        let version = self.put_with(key, path, metadata, Some(retention))?;
        let none = || BucketError::Unfit("the bucket keeps no versions, so that a lock protects nothing".to_owned());
        version.filter(|id| id != "null").ok_or_else(none)
    }

    /// Puts a file without a lock of its own.
    pub fn put_unlocked(&self, key: &str, path: &Path, metadata: &[(&str, String)]) -> Result<(), BucketError> {
        self.put_with(key, path, metadata, None).map(drop)
    }

    fn put_with(
        &self,
        key: &str,
        path: &Path,
        metadata: &[(&str, String)],
        retention: Option<&Retention>,
    ) -> Result<Option<String>, BucketError> {
        let bytes = std::fs::metadata(path).map_err(file)?.len();
        let terms = Terms {
            metadata: metadata.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
            lock: retention.map(|r| (ObjectLockMode::from(r.mode.as_str()), DateTime::from_secs(r.until_s))),
            hold: retention.is_some_and(|r| r.legal_hold).then_some(ObjectLockLegalHoldStatus::On),
        };
        self.block(async {
            if bytes > self.part_bytes {
                self.put_parts(key, path, bytes, &terms).await
            } else {
                self.put_whole(key, path, &terms).await
            }
        })
    }

    /// Removes an object; a lock keeps its versions.
    pub fn remove(&self, key: &str) -> Result<(), BucketError> {
        self.block(async {
            let asked = self.client.delete_object().bucket(&self.bucket).key(self.key(key)).send().await;
            asked.map(drop).map_err(|e| named(key, fault("s3:DeleteObject", &e)))
        })
    }

    /// A URL by which anybody reads an object for a time, as a file of this name. Nothing is asked.
    pub fn presigned(&self, key: &str, name: &str, time: Duration) -> Result<String, BucketError> {
        self.block(async {
            let request = self.client.get_object().bucket(&self.bucket).key(self.key(key));
            let request = request
                .response_content_disposition(format!("attachment; filename=\"{name}\""))
                .response_content_type("application/octet-stream");
            let config = PresigningConfig::expires_in(time);
            let config = config.map_err(|e| BucketError::Unfit(format!("a URL for {time:?}: {e}")))?;
            let signed = request.presigned(config).await.map_err(|e| fault("s3:GetObject", &e))?;
            Ok(signed.uri().to_owned())
        })
    }

    async fn put_whole(&self, key: &str, path: &Path, terms: &Terms) -> Result<Option<String>, BucketError> {
        let body = std::fs::read(path).map_err(file)?;
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .content_md5(md5_of(&body))
            .set_metadata(Some(terms.metadata.clone()))
            .set_object_lock_mode(terms.mode())
            .set_object_lock_retain_until_date(terms.until())
            .set_object_lock_legal_hold_status(terms.hold.clone())
            .body(ByteStream::from(body));
        let put = request.send().await.map_err(|e| fault("s3:PutObject with s3:PutObjectRetention", &e))?;
        Ok(put.version_id().map(str::to_owned))
    }

    async fn put_parts(
        &self,
        key: &str,
        path: &Path,
        bytes: u64,
        terms: &Terms,
    ) -> Result<Option<String>, BucketError> {
        let (key, bucket) = (self.key(key), &self.bucket);
        let begun = self
            .client
            .create_multipart_upload()
            .bucket(bucket)
            .key(&key)
            .set_metadata(Some(terms.metadata.clone()))
            .set_object_lock_mode(terms.mode())
            .set_object_lock_retain_until_date(terms.until())
            .set_object_lock_legal_hold_status(terms.hold.clone())
            .send()
            .await
            .map_err(|e| fault("s3:PutObject with s3:PutObjectRetention", &e))?;
        let Some(upload) = begun.upload_id() else {
            return Err(BucketError::Failing("s3:PutObject", "an upload in parts has no id".to_owned()));
        };
        match self.parts(&key, upload, path, bytes).await {
            Ok(Some(version)) => {
                self.lock_again(&key, &version, terms).await?;
                Ok(Some(version))
            }
            Ok(None) => Ok(None),
            Err(e) => {
                // What was sent costs until it is given up; the error that matters is the first one.
                let _ = self.client.abort_multipart_upload().bucket(bucket).key(&key).upload_id(upload).send().await;
                Err(e)
            }
        }
    }

    /// Some servers take the lock of an upload in parts and forget it (Ceph 16): it is set again, which changes nothing where it is known.
    async fn lock_again(&self, key: &str, version: &str, terms: &Terms) -> Result<(), BucketError> {
        let Some((mode, until)) = &terms.lock else { return Ok(()) };
        let mode = ObjectLockRetentionMode::from(mode.as_str());
        let retention = ObjectLockRetention::builder().mode(mode).retain_until_date(*until).build();
        let request = self.client.put_object_retention().bucket(&self.bucket).key(key).version_id(version);
        let set = request.retention(retention).send().await;
        set.map_err(|e| fault("s3:PutObjectRetention", &e))?;
        if terms.hold.is_some() {
            let hold = ObjectLockLegalHold::builder().status(ObjectLockLegalHoldStatus::On).build();
            let request = self.client.put_object_legal_hold().bucket(&self.bucket).key(key).version_id(version);
            request.legal_hold(hold).send().await.map_err(|e| fault("s3:PutObjectLegalHold", &e))?;
        }
        Ok(())
    }

    async fn parts(&self, key: &str, upload: &str, path: &Path, bytes: u64) -> Result<Option<String>, BucketError> {
        let mut from = std::fs::File::open(path).map_err(file)?;
        let (mut parts, mut sent) = (Vec::new(), 0);
        for number in 1.. {
            if sent >= bytes {
                break;
            }
            let mut part = Vec::new();
            from.seek(std::io::SeekFrom::Start(sent)).map_err(file)?;
            (&mut from).take(self.part_bytes).read_to_end(&mut part).map_err(file)?;
            sent += part.len() as u64;
            let request = self
                .client
                .upload_part()
                .bucket(&self.bucket)
                .key(key)
                .upload_id(upload)
                .part_number(number)
                .content_md5(md5_of(&part))
                .body(ByteStream::from(part));
            let put = request.send().await.map_err(|e| fault("s3:PutObject", &e))?;
            parts.push(CompletedPart::builder().part_number(number).set_e_tag(put.e_tag).build());
        }
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = self.client.complete_multipart_upload().bucket(&self.bucket).key(key).upload_id(upload);
        let done = request.multipart_upload(parts).send().await.map_err(|e| fault("s3:PutObject", &e))?;
        Ok(done.version_id().map(str::to_owned))
    }
}

/// How an object is put.
struct Terms {
    metadata: std::collections::HashMap<String, String>,
    /// Mode, and until when.
    lock: Option<(ObjectLockMode, DateTime)>,
    hold: Option<ObjectLockLegalHoldStatus>,
}

impl Terms {
    fn mode(&self) -> Option<ObjectLockMode> {
        self.lock.as_ref().map(|(mode, _)| mode.clone())
    }

    fn until(&self) -> Option<DateTime> {
        self.lock.as_ref().map(|(_, until)| *until)
    }
}

/// Says of what an object that is not there is the one.
fn named(key: &str, error: BucketError) -> BucketError {
    match error {
        BucketError::Missing(said) => BucketError::Missing(format!("{key} ({said})")),
        other => other,
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping it would block, which async callers may not.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_url;

    #[test]
    fn urls_name_a_bucket_and_a_prefix() {
        let is = |url: &str, bucket: &str, prefix: &str| {
            assert_eq!(parse_url(url), Some((bucket.to_owned(), prefix.to_owned())), "{url}");
        };
        is("s3://audit", "audit", "");
        is("s3://audit/", "audit", "");
        is("s3://audit-1.example/a/b/", "audit-1.example", "a/b");
        for url in ["s3://", "s3:///a", "s3://ab", "s3://Audit", "s3://audit/../x", "http://audit", "s3://au dit"] {
            assert_eq!(parse_url(url), None, "{url}");
        }
    }
}
