//! Where signers are, as people write it: a PKCS#11 URI (RFC 7512), an AWS KMS key, or the URL of a signing proxy.

use std::path::PathBuf;

use super::Keeper;
use crate::hash::from_hex;

/// A text that names no signer. Says what is wrong with it, without repeating what may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlaceError(pub String);

/// One key, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignerPlace {
    /// `pkcs11:token=…;object=…?module-path=…&pin-source=…`
    Pkcs11(TokenUri),
    /// `awskms:` and a key id, alias or ARN.
    Kms(KmsKey),
    /// `https://host/path`, all keys of a signing proxy, or one of them: `https://host/path#public-key-in-hex`.
    Proxy(ProxyUrl),
}

/// The keys of a token (RFC 7512). Those with this label and id, or all Ed25519 keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenUri {
    /// `token`: the token's label.
    pub token: Option<String>,
    /// `serial`: its serial number.
    pub serial: Option<String>,
    /// `object`: CKA_LABEL.
    pub object: Option<String>,
    /// `id`: CKA_ID.
    pub id: Option<Vec<u8>>,
    /// `module-path`: the library that speaks with the token.
    pub module: Option<PathBuf>,
    /// `pin-source`: the file whose first line is the PIN.
    pub pin_source: Option<PathBuf>,
}

/// A key of AWS KMS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsKey {
    /// Key id, `alias/…`, or an ARN of either.
    pub id: String,
}

/// A signing proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyUrl {
    /// `https://host[:port][/path]` without a slash at its end; plain `http` to this machine only.
    pub base: String,
    /// Only this key of it.
    pub public_key: Option<[u8; 32]>,
}

impl SignerPlace {
    /// Whether a text is meant to name a signer, rather than a file.
    pub fn is_meant(text: &str) -> bool {
        ["pkcs11:", "awskms:", "https://", "http://"].iter().any(|scheme| text.starts_with(scheme))
    }

    /// Reads the text.
    pub fn parse(text: &str) -> Result<SignerPlace, PlaceError> {
        if let Some(rest) = text.strip_prefix("pkcs11:") {
            return TokenUri::parse(rest).map(SignerPlace::Pkcs11);
        }
        if let Some(id) = text.strip_prefix("awskms:") {
            return KmsKey::parse(id).map(SignerPlace::Kms);
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return ProxyUrl::parse(text).map(SignerPlace::Proxy);
        }
        Err(PlaceError("not pkcs11:…, awskms:… or https://…".into()))
    }

    /// What keeps keys there.
    pub fn keeper(&self) -> Keeper {
        match self {
            SignerPlace::Pkcs11(_) => Keeper::Pkcs11,
            SignerPlace::Kms(_) => Keeper::Kms,
            SignerPlace::Proxy(_) => Keeper::Proxy,
        }
    }
}

/// Without secrets.
impl std::fmt::Display for SignerPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SignerPlace::Pkcs11(uri) => uri.fmt(f),
            SignerPlace::Kms(key) => write!(f, "AWS KMS key {}", key.id),
            SignerPlace::Proxy(url) => write!(f, "signing proxy {}", url.base),
        }
    }
}

impl std::fmt::Display for TokenUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_deref().or(self.serial.as_deref()).unwrap_or_default();
        write!(f, "PKCS#11 token {token}")?;
        self.object.as_ref().map_or(Ok(()), |object| write!(f, ", key {object}"))
    }
}

/// `%xx` decoded (RFC 3986 2.1).
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            out.extend(from_hex(std::str::from_utf8(tail.get(..2)?).ok()?.to_ascii_lowercase().as_str())?);
            rest = tail.get(2..)?;
        } else {
            out.push(first);
            rest = tail;
        }
    }
    Some(out)
}

/// Percent-encoded but for letters, digits and `-._`.
fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02x}") }).collect()
}

impl TokenUri {
    /// Names the key in a history: token, serial number and label, and nothing of this machine.
    pub(super) fn source(&self) -> String {
        let attributes = [("token", &self.token), ("serial", &self.serial), ("object", &self.object)];
        let given = attributes.iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_ref()?))));
        format!("pkcs11:{}", given.collect::<Vec<_>>().join(";"))
    }

    /// Reads that name.
    pub(super) fn of_source(source: &str) -> Option<TokenUri> {
        TokenUri::parse(source.strip_prefix("pkcs11:")?).ok()
    }

    fn parse(text: &str) -> Result<TokenUri, PlaceError> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let mut uri = TokenUri::default();
        let attributes = path.split(';').map(|a| (a, true)).chain(query.split('&').map(|a| (a, false)));
        for (attribute, in_path) in attributes.filter(|(a, _)| !a.is_empty()) {
            let (name, value) = attribute.split_once('=').ok_or_else(|| {
                PlaceError("a PKCS#11 URI is made of name=value, as pkcs11:token=ledger;object=commit".into())
            })?;
            let bytes =
                decoded(value).ok_or_else(|| PlaceError(format!("{name}: not percent-encoded as RFC 7512 says")))?;
            let text = String::from_utf8(bytes.clone()).map_err(|_| PlaceError(format!("{name}: not UTF-8")));
            match (name, in_path) {
                ("token", true) => uri.token = Some(text?),
                ("serial", true) => uri.serial = Some(text?),
                ("object", true) => uri.object = Some(text?),
                ("id", true) => uri.id = Some(bytes),
                ("type", true) if value == "private" => {}
                ("module-path", false) => uri.module = Some(text?.into()),
                ("pin-source", false) => {
                    let text = text?;
                    let path = text.strip_prefix("file://").or(text.strip_prefix("file:")).unwrap_or(&text);
                    uri.pin_source = Some(path.into());
                }
                ("pin-value", _) => {
                    let why = "a PIN does not belong where everybody reads it: give pin-source=file:/path, or the variable \
                               LEDGER_PKCS11_PIN_FILE or LEDGER_PKCS11_PIN";
                    return Err(PlaceError(why.into()));
                }
                _ => {
                    let known = "token, serial, object, id, type=private; after '?': module-path, pin-source";
                    return Err(PlaceError(format!("the attribute {name} is not known here; known are {known}")));
                }
            }
        }
        if uri.token.is_none() && uri.serial.is_none() {
            return Err(PlaceError("a PKCS#11 URI must name the token, by token=LABEL or serial=NUMBER".into()));
        }
        Ok(uri)
    }
}

impl KmsKey {
    /// A key by its id, alias or ARN.
    pub fn parse(id: &str) -> Result<KmsKey, PlaceError> {
        let fits = (1..=2048).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        if !fits {
            return Err(PlaceError("a key of AWS KMS is named by its key id, alias/NAME, or an ARN of either".into()));
        }
        Ok(KmsKey { id: id.to_owned() })
    }

    /// The region that an ARN names.
    pub fn region(&self) -> Option<&str> {
        self.id.strip_prefix("arn:")?.split(':').nth(2).filter(|region| !region.is_empty())
    }
}

impl ProxyUrl {
    /// A proxy by its URL.
    pub fn parse(text: &str) -> Result<ProxyUrl, PlaceError> {
        let (base, fragment) = text.split_once('#').map_or((text, None), |(base, key)| (base, Some(key)));
        let (scheme, rest) = base.split_once("://").ok_or_else(|| PlaceError("not an https:// URL".into()))?;
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.contains('@') {
            let why =
                "a password does not belong into the URL: give SIGNING_PROXY_API_KEY_FILE or SIGNING_PROXY_API_KEY";
            return Err(PlaceError(why.into()));
        }
        let well = !authority.is_empty() && base.bytes().all(|b| b.is_ascii_graphic()) && !base.contains('?');
        if !well {
            return Err(PlaceError("not a URL of the form https://host/path".into()));
        }
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let here = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        if scheme != "https" && !(scheme == "http" && here) {
            return Err(PlaceError("must be https:// (plain http:// only to this machine)".into()));
        }
        let one = |hex: &str| from_hex(hex).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let public_key = match fragment {
            None => None,
            Some(hex) => Some(one(hex).ok_or_else(|| {
                PlaceError("after '#' there must be the 64 hex digits of an Ed25519 public key".into())
            })?),
        };
        Ok(ProxyUrl { base: base.trim_end_matches('/').to_owned(), public_key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        SignerPlace::parse(text).unwrap_err().0
    }

    #[test]
    fn places_are_read_as_written() {
        let text = "pkcs11:token=my%20token;id=%01%aB;object=commit;type=private?module-path=/usr/lib/x.so&pin-source=file:/run/pin";
        let Ok(SignerPlace::Pkcs11(uri)) = SignerPlace::parse(text) else { panic!("not read") };
        assert_eq!(uri.token.as_deref(), Some("my token"));
        assert_eq!((uri.id.as_deref(), uri.object.as_deref()), (Some(&[1, 0xab][..]), Some("commit")));
        assert_eq!(uri.pin_source, Some("/run/pin".into()));
        assert_eq!(uri.source(), "pkcs11:token=my%20token;object=commit");
        let again = TokenUri::of_source(&uri.source()).unwrap();
        assert_eq!((again.token, again.object), (uri.token.clone(), uri.object.clone()));
        assert_eq!(SignerPlace::Pkcs11(uri).to_string(), "PKCS#11 token my token, key commit");
        let Ok(SignerPlace::Kms(key)) = SignerPlace::parse("awskms:arn:aws:kms:eu-west-1:111122223333:key/1-2") else {
            panic!("not read")
        };
        assert_eq!(key.region(), Some("eu-west-1"));
        assert_eq!(KmsKey::parse("alias/ledger").unwrap().region(), None);
        let Ok(SignerPlace::Proxy(url)) =
            SignerPlace::parse(&format!("https://sign.example:8443/v1/#{}", "0a".repeat(32)))
        else {
            panic!("not read")
        };
        assert_eq!((url.base.as_str(), url.public_key), ("https://sign.example:8443/v1", Some([10; 32])));
    }

    #[test]
    fn what_names_no_signer_says_what_is_wrong() {
        assert!(refused("commit.pem").contains("pkcs11:"));
        assert!(refused("pkcs11:object=commit").contains("must name the token"));
        let pin = refused("pkcs11:token=t?pin-value=1234");
        assert!(pin.contains("LEDGER_PKCS11_PIN_FILE") && !pin.contains("1234"), "{pin}");
        assert!(refused("pkcs11:token=t;slot-id=3").contains("slot-id"));
        assert!(refused("pkcs11:token=%zz").contains("RFC 7512"));
        assert!(refused("pkcs11:token").contains("name=value"));
        assert!(refused("awskms:").contains("alias/NAME"));
        assert!(refused("http://sign.example").contains("https"));
        assert!(SignerPlace::parse("http://127.0.0.1:8000").is_ok());
        let password = refused("https://user:secret@sign.example");
        assert!(password.contains("API_KEY") && !password.contains("secret"), "{password}");
        assert!(refused("https://sign.example#12").contains("64 hex"));
        assert!(refused("https://?x").contains("https://host"));
    }
}
