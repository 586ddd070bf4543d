//! Ed25519 keys, and what signatures are over.
//!
//! Whatever is signed begins with a line that says what it is, so that a signature for one thing is none for another:
//! `millrace.event.v1` and the canonical JSON of an event, or `millrace.build.v1` and that of `{bytes, digest, plugin}`.
//! A private key is a file in the usual PEM form of PKCS#8 (`BEGIN PRIVATE KEY`); what `openssl genpkey -algorithm ed25519`
//! writes is read as well. A public key is the JSON of a `TrustedKey`, alone or in a list of trusted keys.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};

use super::trust::{KeyRole, TrustedKey};
use super::{ControlFeedError, Result, Signature};
use crate::error::BackendError;
use crate::limits::CONTROL_KEY_FILE_BYTES_MAX;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
const PEM_LINE_BYTES: usize = 64;

/// What a signature is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Context {
    Event,
    Build,
}

impl Context {
    fn message(self, content: &[u8]) -> Vec<u8> {
        let line: &[u8] = match self {
            Self::Event => b"millrace.event.v1\n",
            Self::Build => b"millrace.build.v1\n",
        };
        [line, content].concat()
    }
}

/// A private key. It is never shown but by [`SigningKey::generate`].
pub struct SigningKey {
    pair: Ed25519KeyPair,
    id: String,
}

impl SigningKey {
    /// A new key, and the text of its file, which nobody else should be able to read.
    pub fn generate() -> Result<(Self, String)> {
        let failed = |_| BackendError::Failed { detail: "the system gives no randomness".into() };
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(failed)?;
        let text = STANDARD.encode(pkcs8.as_ref());
        let mut pem = format!("{BEGIN}\n");
        for line in text.as_bytes().chunks(PEM_LINE_BYTES) {
            pem.extend(line.iter().map(|b| char::from(*b)));
            pem.push('\n');
        }
        pem.push_str(END);
        pem.push('\n');
        Ok((Self::from_pem(&pem)?, pem))
    }

    /// Reads the text of a file. The error shows nothing of it.
    pub fn from_pem(text: &str) -> Result<Self> {
        let wrong = |detail: &str| ControlFeedError::Settings {
            setting: "control.signing_key".into(),
            detail: detail.into(),
        };
        if text.len() > CONTROL_KEY_FILE_BYTES_MAX {
            return Err(wrong("the file is longer than control_key_file_bytes_max"));
        }
        let inner = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
        let (inner, _) = inner.ok_or_else(|| wrong("there is no private key in PEM form in the file"))?;
        let inner: String = inner.split_ascii_whitespace().collect();
        let pkcs8 = STANDARD.decode(inner).map_err(|_| wrong("the private key is damaged"))?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8)
            .map_err(|_| wrong("it is not an Ed25519 key, or it is damaged"))?;
        let id = key_id(pair.public_key().as_ref());
        Ok(Self { pair, id })
    }

    /// What signatures of this key name it by.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What others need to believe it.
    pub fn trusted_as(&self, role: KeyRole, owner: &str) -> TrustedKey {
        let public_key = STANDARD.encode(self.pair.public_key().as_ref());
        TrustedKey { public_key, role, owner: owner.to_owned(), expires_at: None, revoked: false }
    }

    pub(super) fn sign(&self, context: Context, content: &[u8]) -> Signature {
        let signature = self.pair.sign(&context.message(content));
        Signature { key: self.id.clone(), signature: STANDARD.encode(signature.as_ref()) }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.id)
    }
}

/// `ed25519:` and the first 16 hexadecimal digits of the SHA-256 of a public key.
pub(super) fn key_id(public_key: &[u8]) -> String {
    Sha256::digest(public_key)
        .iter()
        .take(8)
        .fold("ed25519:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

pub(super) fn public_key(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

pub(super) fn verifies(
    public_key: &[u8; 32],
    context: Context,
    content: &[u8],
    signature: &Signature,
) -> bool {
    let Ok(bytes) = STANDARD.decode(&signature.signature) else { return false };
    UnparsedPublicKey::new(&ED25519, public_key).verify(&context.message(content), &bytes).is_ok()
}
