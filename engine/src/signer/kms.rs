//! Keys in AWS KMS, through the SDK: Ed25519 keys that sign (`ECC_NIST_EDWARDS25519`), messages of up to 4,096 bytes, and symmetric keys that
//! seal secrets of as many.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{BehaviorVersion, ConfigBag, Intercept, Region, RuntimeComponents};
use aws_sdk_kms::error::{BoxError, DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{MessageType, SigningAlgorithmSpec};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::http::Response;
use aws_smithy_types::body::SdkBody;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use super::keyring::SignerSource;
use super::place::{KmsKey, SignerPlace};
use super::remote::{Patience, RemoteError, RemoteKey, RemoteSigner, within};
use super::sealing::{Opening, Sealed, SealingKey, elsewhere};
use super::{Keeper, Pending, Signer, SignerError};
use crate::hash::to_hex;
use crate::public_key::PublicKey;

/// The longest message that KMS signs as it is.
const MESSAGE_MAX: usize = 4096;
/// The longest answer that is read.
const ANSWER_MAX: usize = 64 * 1024;

/// Stops reading an answer that is too long to be one.
#[derive(Debug)]
struct AnswerLimit;

impl Intercept for AnswerLimit {
    fn name(&self) -> &'static str {
        "AnswerLimit"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response_mut().body_mut();
        let unlimited = std::mem::replace(body, SdkBody::empty());
        *body = SdkBody::from_body_1_x(http_body_util::Limited::new(unlimited, ANSWER_MAX));
        Ok(())
    }
}

/// What a request failed with. The service's own words are cut to a line.
fn fault<E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static>(
    error: SdkError<E, Response>,
) -> RemoteError {
    let SdkError::ServiceError(service) = &error else {
        let text = DisplayErrorContext(&error).to_string();
        // Credentials and regions that are missing do not come by waiting.
        let lasting = matches!(error, SdkError::ConstructionFailure(_));
        return RemoteError { reason: line(&text), again: !lasting };
    };
    let (status, meta) = (service.raw().status().as_u16(), service.err().meta());
    let code = meta.code().unwrap_or("an error without a code");
    let reason = line(&format!("{code} (HTTP {status}): {}", meta.message().unwrap_or_default()));
    let passing = status >= 500
        || ["ThrottlingException", "LimitExceededException", "RequestLimitExceeded", "ExpiredTokenException"]
            .contains(&code)
        || meta.code().is_none();
    RemoteError { reason, again: passing }
}

fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect::<String>().trim_end().to_owned()
}

struct Key {
    client: Client,
    id: String,
}

impl Key {
    async fn public_key(&self) -> Result<[u8; 32], RemoteError> {
        let answer = self.client.get_public_key().key_id(&self.id).send().await.map_err(fault)?;
        let der = answer.public_key().map(Blob::as_ref).unwrap_or_default();
        let key = PublicKey::from_spki(der).ok().and_then(|key| key.ed25519());
        key.ok_or_else(|| {
            let spec = answer.key_spec().map_or("no key", |spec| spec.as_str());
            RemoteError::lasting(format!("it is {spec}; the ledger needs ECC_NIST_EDWARDS25519 for SIGN_VERIFY"))
        })
    }
}

impl RemoteKey for Key {
    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<Vec<u8>, RemoteError>> {
        Box::pin(async move {
            if message.len() > MESSAGE_MAX {
                let why = format!("KMS signs at most {MESSAGE_MAX} bytes, and this statement has {}", message.len());
                return Err(RemoteError::lasting(why));
            }
            let request = self.client.sign().key_id(&self.id).message(Blob::new(message));
            let request = request.message_type(MessageType::Raw).signing_algorithm(SigningAlgorithmSpec::Ed25519Sha512);
            let answer = request.send().await.map_err(fault)?;
            Ok(answer.signature().map(|signature| signature.as_ref().to_vec()).unwrap_or_default())
        })
    }

    fn check(&self) -> Pending<'_, Result<(), RemoteError>> {
        Box::pin(async move { self.public_key().await.map(drop) })
    }

    fn keeper(&self) -> Keeper {
        Keeper::Kms
    }
}

/// A key of AWS KMS as a signer, or as one that seals. Region and credentials come by the SDK's usual chain; an ARN brings its region.
pub struct KmsSource {
    key: KmsKey,
    patience: Patience,
    runtime: Handle,
    client: OnceCell<Client>,
}

impl KmsSource {
    /// Nothing is asked yet.
    pub fn new(key: KmsKey, patience: Patience, runtime: Handle) -> KmsSource {
        KmsSource { key, patience, runtime, client: OnceCell::new() }
    }

    async fn client(&self) -> &Client {
        let connect = || async {
            let http =
                aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
            let timeouts = TimeoutConfig::builder().connect_timeout(self.patience.attempt.min(Duration::from_secs(2)));
            let mut config = aws_config::defaults(BehaviorVersion::latest())
                .http_client(http)
                // Attempts are counted in one place (`Patience`).
                .retry_config(RetryConfig::disabled())
                .timeout_config(timeouts.build());
            if let Some(region) = self.key.region() {
                config = config.region(Region::new(region.to_owned()));
            }
            let config = aws_sdk_kms::config::Builder::from(&config.load().await).interceptor(AnswerLimit);
            Client::from_conf(config.build())
        };
        self.client.get_or_init(connect).await
    }

    async fn signer(&self, name: &str) -> Result<Arc<dyn Signer>, RemoteError> {
        let key = Key { client: self.client().await.clone(), id: self.key.id.clone() };
        let public_key = within(self.patience.attempt, "public key", key.public_key()).await?;
        Ok(Arc::new(RemoteSigner::new(public_key, name.to_owned(), Arc::new(key), self.patience)))
    }
}

impl SignerSource for KmsSource {
    fn signers(&self) -> Result<Vec<Arc<dyn Signer>>, SignerError> {
        let name = SignerPlace::Kms(self.key.clone()).to_string();
        let signer = self.runtime.block_on(self.signer(&name)).map_err(|e| e.of(&name))?;
        Ok(vec![signer])
    }
}

/// The member of the encryption context that a secret is bound to, in hex. KMS writes it into its log.
const CONTEXT: &str = "ledger-delivery";

/// `Encrypt` and `Decrypt` under a symmetric key.
impl SealingKey for KmsSource {
    fn seal<'a>(&'a self, secret: &'a [u8], context: &'a [u8]) -> Pending<'a, Result<Sealed, RemoteError>> {
        let sealing = async move {
            let request = self.client().await.encrypt().key_id(&self.key.id).plaintext(Blob::new(secret));
            let answer = request.encryption_context(CONTEXT, to_hex(context)).send().await.map_err(fault)?;
            // An alias may name another key tomorrow.
            let key = answer.key_id().ok_or_else(|| RemoteError::passing("the answer does not name the key"))?;
            let bytes = answer.ciphertext_blob().map(|blob| blob.as_ref().to_vec()).unwrap_or_default();
            Ok(Sealed { source: format!("awskms:{key}"), bytes })
        };
        Box::pin(within(self.patience.attempt, "sealed key", sealing))
    }

    fn open<'a>(&'a self, sealed: &'a Sealed, context: &'a [u8]) -> Opening<'a> {
        let opening = async move {
            let key = sealed.source.strip_prefix("awskms:").ok_or_else(|| elsewhere(&sealed.source))?;
            let request = self.client().await.decrypt().key_id(key).ciphertext_blob(Blob::new(sealed.bytes.as_slice()));
            let answer = request.encryption_context(CONTEXT, to_hex(context)).send().await.map_err(fault)?;
            Ok(Zeroizing::new(answer.plaintext.map(Blob::into_inner).unwrap_or_default()))
        };
        Box::pin(within(self.patience.attempt, "opened key", opening))
    }

    fn keeper(&self) -> Keeper {
        Keeper::Kms
    }
}
