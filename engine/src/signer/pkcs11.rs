//! Keys in a PKCS#11 token: a hardware security module, or SoftHSM. The private key never leaves it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::keyring::SignerSource;
use super::place::TokenUri;
use super::remote::{Patience, RemoteError, RemoteKey, RemoteSigner, within};
use super::sealing::{Opening, Sealed, SealingKey, elsewhere};
use super::{Keeper, Pending, Signer, SignerError};
use crate::keys::{secret_line, secret_of_environment};

/// The variable that names the PKCS#11 library, for URIs without `module-path`.
pub const MODULE: &str = "LEDGER_PKCS11_MODULE";
/// The variable that names the file whose first line is the PIN, for URIs without `pin-source`.
pub const PIN_FILE: &str = "LEDGER_PKCS11_PIN_FILE";
/// The variable that holds the PIN itself, where there is no file.
pub const PIN: &str = "LEDGER_PKCS11_PIN";

/// How many calls a token gets at once, and so how many threads one that hangs can hold.
const SESSIONS: usize = 4;

/// CKA_EC_PARAMS of Ed25519: the object identifier 1.3.101.112 (RFC 8410 3).
const ED25519_OID: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The library, loaded and initialised once in a process, as PKCS#11 wants it. It stays until the process ends.
fn module(path: &Path) -> Result<Pkcs11, RemoteError> {
    static LOADED: Mutex<Vec<(PathBuf, Pkcs11)>> = Mutex::new(Vec::new());
    let mut loaded = lock(&LOADED);
    if let Some((_, module)) = loaded.iter().find(|(p, _)| p == path) {
        return Ok(module.clone());
    }
    let shown = path.display();
    let module = Pkcs11::new(path)
        .map_err(|e| RemoteError::lasting(format!("the PKCS#11 library {shown} cannot be loaded: {e}")))?;
    initialize(&module)
        .map_err(|e| RemoteError::lasting(format!("the PKCS#11 library {shown} does not start: {e}")))?;
    loaded.push((path.to_owned(), module.clone()));
    Ok(module)
}

fn initialize(module: &Pkcs11) -> Result<(), Error> {
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        result => result,
    }
}

/// What a call failed with. A PIN is never part of it.
fn fault(error: &Error) -> RemoteError {
    let lasting = matches!(
        error,
        Error::Pkcs11(
            RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinExpired
                | RvError::PinLocked
                | RvError::UserPinNotInitialized
                | RvError::KeyFunctionNotPermitted
                | RvError::KeyTypeInconsistent
                | RvError::MechanismInvalid
                | RvError::TokenNotRecognized,
            _
        ) | Error::NotSupported
            | Error::NullFunctionPointer
    );
    RemoteError { reason: error.to_string(), again: !lasting }
}

/// What tells a private key from the others in its token: CKA_ID and CKA_LABEL.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyName {
    id: Vec<u8>,
    label: Vec<u8>,
}

impl KeyName {
    fn template(&self, class: ObjectClass) -> Vec<Attribute> {
        let mut template = vec![Attribute::Class(class), Attribute::Id(self.id.clone())];
        if self.id.is_empty() {
            template.push(Attribute::Label(self.label.clone()));
        }
        template
    }
}

/// A session, and the key that it signed with last.
struct Opened {
    session: Session,
    key: Option<(KeyName, ObjectHandle)>,
}

/// A token, its sessions, and the PIN that it refused.
struct Token {
    uri: TokenUri,
    idle: Mutex<Vec<Opened>>,
    /// Not given to the token again: after a few wrong ones it locks itself.
    refused: Mutex<Option<Zeroizing<String>>>,
    room: Arc<Semaphore>,
}

impl Token {
    fn module(&self) -> Result<Pkcs11, RemoteError> {
        let of_environment = || std::env::var_os(MODULE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let path = self.uri.module.clone().or_else(of_environment).ok_or_else(|| {
            RemoteError::lasting(format!(
                "no PKCS#11 library is named: add ?module-path=FILE to its URI, or set {MODULE}"
            ))
        })?;
        module(&path)
    }

    fn pin(&self) -> Result<Zeroizing<String>, RemoteError> {
        if let Some(path) = &self.uri.pin_source {
            return secret_line(path).map_err(|e| RemoteError::lasting(format!("pin-source: {e}")));
        }
        let missing =
            || format!("the token wants a PIN: add &pin-source=file:FILE to its URI, or set {PIN_FILE} or {PIN}");
        secret_of_environment(PIN_FILE, PIN).and_then(|pin| pin.ok_or_else(missing)).map_err(RemoteError::lasting)
    }

    fn slot(&self, module: &Pkcs11) -> Result<Slot, RemoteError> {
        let slots = match module.get_slots_with_initialized_token() {
            Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _)) => {
                initialize(module).map_err(|e| fault(&e))?;
                module.get_slots_with_initialized_token()
            }
            slots => slots,
        };
        for slot in slots.map_err(|e| fault(&e))? {
            let Ok(info) = module.get_token_info(slot) else { continue };
            let fits = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found.trim_end());
            if fits(&self.uri.token, info.label()) && fits(&self.uri.serial, info.serial_number()) {
                return Ok(slot);
            }
        }
        Err(RemoteError::passing("the token is not there"))
    }

    fn open(&self) -> Result<Opened, RemoteError> {
        let module = self.module()?;
        let slot = self.slot(&module)?;
        let session = module.open_ro_session(slot).map_err(|e| fault(&e))?;
        self.login(&module, slot, &session)?;
        Ok(Opened { session, key: None })
    }

    /// All sessions of a process are logged in once one of them is.
    fn login(&self, module: &Pkcs11, slot: Slot, session: &Session) -> Result<(), RemoteError> {
        let mut refused = lock(&self.refused);
        let state = session.get_session_info().map_err(|e| fault(&e))?.session_state();
        let info = module.get_token_info(slot).map_err(|e| fault(&e))?;
        if !info.login_required() || matches!(state, SessionState::RoUser | SessionState::RwUser) {
            return Ok(());
        }
        if info.user_pin_locked() {
            return Err(RemoteError::lasting(
                "the token has locked its PIN after too many wrong ones: its officer must unlock it",
            ));
        }
        if info.user_pin_final_try() {
            let why =
                "one more wrong PIN would lock the token, so it is not tried: log in by hand once with the right one";
            return Err(RemoteError::lasting(why));
        }
        let pin = self.pin()?;
        if refused.as_ref() == Some(&pin) {
            let why = "the token refused this PIN, and it is not tried again: correct it where it comes from";
            return Err(RemoteError::lasting(why));
        }
        match session.login(UserType::User, Some(&AuthPin::new(pin.as_str().into()))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                *refused = None;
                Ok(())
            }
            Err(Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _)) => {
                *refused = Some(pin);
                Err(RemoteError::lasting(
                    "the token refused the PIN; it is not tried again: correct it where it comes from",
                ))
            }
            Err(e) => Err(fault(&e)),
        }
    }

    /// Does something in a session. One that was lost is opened, and logged in, again.
    fn with<T>(&self, work: impl Fn(&mut Opened) -> Result<T, Error>) -> Result<T, RemoteError> {
        let known = lock(&self.idle).pop();
        if let Some(mut opened) = known {
            if let Ok(done) = work(&mut opened) {
                lock(&self.idle).push(opened);
                return Ok(done);
            }
            // The others are no better, and a login counts for as long as one of them is open.
            drop(opened);
            lock(&self.idle).clear();
        }
        let mut opened = self.open()?;
        let done = work(&mut opened).map_err(|e| fault(&e))?;
        lock(&self.idle).push(opened);
        Ok(done)
    }

    /// All Ed25519 keys that the URI names, with their public keys.
    fn keys(&self) -> Result<Vec<([u8; 32], KeyName)>, RemoteError> {
        let mut template = vec![Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(KeyType::EC_EDWARDS)];
        template.extend(self.uri.object.as_ref().map(|label| Attribute::Label(label.as_bytes().to_vec())));
        template.extend(self.uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
        let found = self.with(|opened| {
            let session = &opened.session;
            let mut keys = Vec::new();
            for handle in session.find_objects(&template)? {
                let mut name = KeyName { id: Vec::new(), label: Vec::new() };
                for attribute in session.get_attributes(handle, &[AttributeType::Id, AttributeType::Label])? {
                    match attribute {
                        Attribute::Id(id) => name.id = id,
                        Attribute::Label(label) => name.label = label,
                        _ => {}
                    }
                }
                let mut points = Vec::new();
                for public in session.find_objects(&name.template(ObjectClass::PUBLIC_KEY))? {
                    points.extend(session.get_attributes(public, &[AttributeType::EcPoint])?);
                }
                let twins = session.find_objects(&name.template(ObjectClass::PRIVATE_KEY))?.len();
                keys.push((name, points, twins));
            }
            Ok(keys)
        })?;
        let mut keys = Vec::new();
        for (name, points, twins) in found {
            let label = String::from_utf8_lossy(&name.label).into_owned();
            let point = points.iter().find_map(|point| match point {
                Attribute::EcPoint(bytes) => public_key(bytes),
                _ => None,
            });
            let Some(point) = point.filter(|_| twins == 1) else {
                let why = format!(
                    "the key {label} has no Ed25519 public key object of its CKA_ID in the token, or shares its CKA_ID with another"
                );
                return Err(RemoteError::lasting(why));
            };
            keys.push((point, name));
        }
        if keys.is_empty() {
            return Err(RemoteError::lasting("the token has no Ed25519 private key of that name"));
        }
        Ok(keys)
    }

    fn private_key(opened: &mut Opened, name: &KeyName) -> Result<ObjectHandle, Error> {
        if let Some((_, handle)) = opened.key.as_ref().filter(|(known, _)| known == name) {
            return Ok(*handle);
        }
        let found = opened.session.find_objects(&name.template(ObjectClass::PRIVATE_KEY))?;
        let handle = *found.first().ok_or(Error::InvalidValue)?;
        opened.key = Some((name.clone(), handle));
        Ok(handle)
    }

    /// Does something with the one AES key of a label. `None`: there is none, or there are several.
    fn with_aes<T>(
        &self,
        label: &str,
        work: impl Fn(&Session, ObjectHandle) -> Result<T, Error>,
    ) -> Result<T, RemoteError> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        let done = self.with(|opened| match opened.session.find_objects(&template)?[..] {
            [key] => work(&opened.session, key).map(Some),
            _ => Ok(None),
        })?;
        done.ok_or_else(|| RemoteError::lasting(format!("the token has no AES key labelled {label}, or several")))
    }

    fn sign(&self, name: &KeyName, message: &[u8]) -> Result<Vec<u8>, RemoteError> {
        let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
        self.with(|opened| {
            let handle = Token::private_key(opened, name)?;
            opened.session.sign(&mechanism, handle, message)
        })
    }
}

/// CKA_EC_POINT: the 32 bytes in an OCTET STRING, as PKCS#11 3.0 has it; some tokens give a BIT STRING, or the bytes alone.
fn public_key(point: &[u8]) -> Option<[u8; 32]> {
    match point {
        [0x04, 0x20, key @ ..] | [0x03, 0x21, 0x00, key @ ..] => key.try_into().ok(),
        key => key.try_into().ok(),
    }
}

/// One key in a token.
struct TokenKey {
    token: Arc<Token>,
    name: KeyName,
}

/// Calls into a token block. One that was given up goes on in its thread, and keeps its place until it returns.
async fn blocking<T: Send + 'static>(
    token: &Arc<Token>,
    work: impl FnOnce(&Token) -> Result<T, RemoteError> + Send + 'static,
) -> Result<T, RemoteError> {
    let token = Arc::clone(token);
    let room = Arc::clone(&token.room).acquire_owned().await;
    let place = room.map_err(|_| RemoteError::lasting("the token is closed"))?;
    let called = tokio::task::spawn_blocking(move || {
        let _place = place;
        work(&token)
    });
    called.await.unwrap_or_else(|e| Err(RemoteError::passing(format!("the call died: {e}"))))
}

impl RemoteKey for TokenKey {
    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<Vec<u8>, RemoteError>> {
        let (name, message) = (self.name.clone(), message.to_vec());
        Box::pin(blocking(&self.token, move |token| token.sign(&name, &message)))
    }

    fn check(&self) -> Pending<'_, Result<(), RemoteError>> {
        let name = self.name.clone();
        Box::pin(blocking(&self.token, move |token| {
            token.with(|opened| {
                opened.session.get_session_info()?;
                Token::private_key(opened, &name).map(drop)
            })
        }))
    }

    fn keeper(&self) -> Keeper {
        Keeper::Pkcs11
    }
}

/// The keys of a token as signers; its AES key of the URI's label as one that seals.
pub struct TokenSource {
    token: Arc<Token>,
    patience: Patience,
}

impl TokenSource {
    /// Nothing is asked yet.
    pub fn new(uri: TokenUri, patience: Patience) -> TokenSource {
        let (idle, refused, room) = (Mutex::default(), Mutex::default(), Arc::new(Semaphore::new(SESSIONS)));
        TokenSource { token: Arc::new(Token { uri, idle, refused, room }), patience }
    }

    /// Makes an Ed25519 key inside the token, which never gives it away, under the label of the URI. Blocks. Returns its public key.
    pub fn generate(&self) -> Result<[u8; 32], RemoteError> {
        let uri = &self.token.uri;
        let label =
            uri.object.clone().ok_or_else(|| RemoteError::lasting("name the new key: add ;object=LABEL to its URI"))?;
        let label = label.into_bytes();
        let id = match &uri.id {
            Some(id) => id.clone(),
            None => {
                let mut id = vec![0; 16];
                getrandom::fill(&mut id).map_err(|_| RemoteError::passing("the system gives no randomness"))?;
                id
            }
        };
        let module = self.token.module()?;
        let slot = self.token.slot(&module)?;
        let session = module.open_rw_session(slot).map_err(|e| fault(&e))?;
        self.token.login(&module, slot, &session)?;
        let same = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(label.clone())];
        if !session.find_objects(&same).map_err(|e| fault(&e))?.is_empty() {
            return Err(RemoteError::lasting("the token has a key of that label already; choose another one"));
        }
        let common = [Attribute::Token(true), Attribute::Label(label), Attribute::Id(id)];
        let public = [Attribute::EcParams(ED25519_OID.to_vec()), Attribute::Verify(true), Attribute::Private(false)];
        let private = [
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ];
        let (public, private) = ([&common[..], &public].concat(), [&common[..], &private].concat());
        let made = session.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private);
        let (public, _) = made.map_err(|e| fault(&e))?;
        let point = session.get_attributes(public, &[AttributeType::EcPoint]).map_err(|e| fault(&e))?;
        let key = point.iter().find_map(|a| if let Attribute::EcPoint(point) = a { public_key(point) } else { None });
        key.ok_or_else(|| RemoteError::lasting("the token does not tell the public key of the key that it made"))
    }
}

impl SignerSource for TokenSource {
    fn signers(&self) -> Result<Vec<Arc<dyn Signer>>, SignerError> {
        let name = self.token.uri.to_string();
        let keys = self.token.keys().map_err(|e| e.of(&name))?;
        let signer = |(public_key, key): ([u8; 32], KeyName)| {
            let key = Arc::new(TokenKey { token: Arc::clone(&self.token), name: key });
            Arc::new(RemoteSigner::new(public_key, name.clone(), key, self.patience)) as Arc<dyn Signer>
        };
        Ok(keys.into_iter().map(signer).collect())
    }
}

/// Bytes of a nonce of AES-GCM, which come before what it sealed, and bits of its tag.
const NONCE_BYTES: usize = 12;
const TAG_BITS: u64 = 128;

/// CKM_AES_GCM under an AES key that stays in the token. The nonce is random.
impl SealingKey for TokenSource {
    fn seal<'a>(&'a self, secret: &'a [u8], context: &'a [u8]) -> Pending<'a, Result<Sealed, RemoteError>> {
        let (secret, context) = (Zeroizing::new(secret.to_vec()), context.to_vec());
        let sealing = blocking(&self.token, move |token| {
            let label = token.uri.object.as_deref().ok_or_else(|| {
                RemoteError::lasting("name the AES key that seals: add ;object=LABEL to the token's URI")
            })?;
            let mut nonce = [0; NONCE_BYTES];
            getrandom::fill(&mut nonce).map_err(|_| RemoteError::passing("the system gives no randomness"))?;
            let sealed = token.with_aes(label, |session, key| {
                let mut iv = nonce;
                let gcm = GcmParams::new(&mut iv, &context, TAG_BITS.into())?;
                session.encrypt(&Mechanism::AesGcm(gcm), key, &secret)
            })?;
            Ok(Sealed { source: token.uri.source(), bytes: [&nonce[..], &sealed].concat() })
        });
        Box::pin(within(self.patience.total, "sealed key", sealing))
    }

    fn open<'a>(&'a self, sealed: &'a Sealed, context: &'a [u8]) -> Opening<'a> {
        let (sealed, context) = (sealed.clone(), context.to_vec());
        let opening = blocking(&self.token, move |token| {
            let of = TokenUri::of_source(&sealed.source).filter(|of| of.token == token.uri.token);
            let label = of.and_then(|of| of.object).ok_or_else(|| elsewhere(&sealed.source))?;
            let (nonce, bytes) = sealed
                .bytes
                .split_first_chunk::<NONCE_BYTES>()
                .ok_or_else(|| RemoteError::lasting("what was sealed is cut short"))?;
            token.with_aes(&label, |session, key| {
                let mut iv = *nonce;
                let gcm = GcmParams::new(&mut iv, &context, TAG_BITS.into())?;
                session.decrypt(&Mechanism::AesGcm(gcm), key, bytes).map(Zeroizing::new)
            })
        });
        Box::pin(within(self.patience.total, "opened key", opening))
    }

    fn keeper(&self) -> Keeper {
        Keeper::Pkcs11
    }
}
