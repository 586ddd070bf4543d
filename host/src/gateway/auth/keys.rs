//! Keys that tokens are signed with, read from a JSON Web Key Set (RFC 7517).
//!
//! A key has one algorithm, which follows from its type: a token cannot choose to have a public key taken for a
//! secret. Keys of other types and uses are passed over.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use ring::{digest, hmac};
use serde::Deserialize;

use super::options::JwtAlgorithm;
use crate::limits::{JWKS_KEYS_MAX, JWT_SECRET_BYTES_MIN};

/// One key, and what it is recognised by.
#[derive(Debug)]
pub(super) struct Key {
    /// `kid`; none where the set does not say.
    pub(super) id: Option<String>,
    pub(super) algorithm: JwtAlgorithm,
    /// A digest of the key itself, by which it is missed once it is gone.
    pub(super) mark: [u8; 32],
    material: Material,
}

#[derive(Debug)]
enum Material {
    Secret(hmac::Key),
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ed25519(Vec<u8>),
    P256(Vec<u8>),
}

impl Key {
    fn new(id: Option<String>, algorithm: JwtAlgorithm, material: Material, bytes: &[&[u8]]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(algorithm.as_str().as_bytes());
        for part in bytes {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut mark = [0; 32];
        mark.copy_from_slice(context.finish().as_ref());
        Self { id, algorithm, mark, material }
    }

    /// The secret of HS256.
    pub(super) fn secret(id: Option<String>, secret: &[u8]) -> Result<Self, String> {
        if secret.len() < JWT_SECRET_BYTES_MIN {
            let bytes = secret.len();
            return Err(format!(
                "the HS256 secret has {bytes} bytes; jwt_secret_bytes_min is {JWT_SECRET_BYTES_MIN}, less can be guessed"
            ));
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Ok(Self::new(id, JwtAlgorithm::Hs256, Material::Secret(key), &[secret]))
    }

    /// Whether it made a signature. Takes the same time for every wrong one.
    pub(super) fn verifies(&self, message: &[u8], signed: &[u8]) -> bool {
        match &self.material {
            Material::Secret(key) => hmac::verify(key, message, signed).is_ok(),
            // ring refuses keys of fewer than 2,048 bits here.
            Material::Rsa { n, e } => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signed).is_ok()
            }
            Material::Ed25519(point) => {
                UnparsedPublicKey::new(&signature::ED25519, point).verify(message, signed).is_ok()
            }
            Material::P256(point) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point);
                key.verify(message, signed).is_ok()
            }
        }
    }
}

/// The keys that count now.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Deserialize)]
struct SetText {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct KeyText {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

impl KeySet {
    pub(super) fn of(key: Key) -> Self {
        Self(vec![key])
    }

    /// Reads a set. `secrets` says whether a symmetric key counts: one that anybody can fetch is no secret.
    pub(super) fn parse(text: &[u8], secrets: Secrets) -> Result<Self, String> {
        let set: SetText =
            serde_json::from_slice(text).map_err(|e| format!("it is not a JSON Web Key Set: {e}"))?;
        if set.keys.len() > JWKS_KEYS_MAX {
            let keys = set.keys.len();
            return Err(format!("it has {keys} keys; jwks_keys_max is {JWKS_KEYS_MAX}"));
        }
        let keys: Vec<Key> = set.keys.into_iter().filter_map(|key| usable(key, secrets)).collect();
        if keys.is_empty() {
            return Err("it has no key for HS256, RS256, ES256 or EdDSA".into());
        }
        Ok(Self(keys))
    }

    /// The keys that a token may be signed with: those it names, and those that have no name.
    pub(super) fn candidates<'a>(&'a self, id: Option<&'a str>) -> impl Iterator<Item = &'a Key> {
        self.0.iter().filter(move |key| match (id, key.id.as_deref()) {
            (Some(asked), Some(known)) => asked == known,
            _ => true,
        })
    }

    pub(super) fn has(&self, mark: &[u8; 32]) -> bool {
        self.0.iter().any(|key| key.mark == *mark)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn marks(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.0.iter().map(|key| &key.mark)
    }
}

/// Whether symmetric keys of a set count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrets {
    Counted,
    PassedOver,
}

/// A key that verifies signatures here; none for anything else, which a set may hold as well.
fn usable(value: serde_json::Value, secrets: Secrets) -> Option<Key> {
    let text: KeyText = serde_json::from_value(value).ok()?;
    let verifies = text.key_ops.as_ref().is_none_or(|uses| uses.iter().any(|one| one == "verify"));
    if text.purpose.as_deref().is_some_and(|purpose| purpose != "sig") || !verifies {
        return None;
    }
    let id = text.kid;
    let bytes = |part: &Option<String>| URL_SAFE_NO_PAD.decode(part.as_deref()?).ok();
    let key = match (text.kty.as_str(), text.crv.as_deref()) {
        ("oct", None) if secrets == Secrets::Counted => Key::secret(id, &bytes(&text.k)?).ok()?,
        ("RSA", None) => {
            let (n, e) = (without_zeros(bytes(&text.n)?), without_zeros(bytes(&text.e)?));
            Key::new(id, JwtAlgorithm::Rs256, Material::Rsa { n: n.clone(), e: e.clone() }, &[&n, &e])
        }
        ("OKP", Some("Ed25519")) => {
            let x = bytes(&text.x)?;
            Key::new(id, JwtAlgorithm::EdDsa, Material::Ed25519(x.clone()), &[&x])
        }
        ("EC", Some("P-256")) => {
            let (x, y) = (bytes(&text.x)?, bytes(&text.y)?);
            if x.len() != 32 || y.len() != 32 {
                return None;
            }
            let point = [&[4], x.as_slice(), y.as_slice()].concat();
            Key::new(id, JwtAlgorithm::Es256, Material::P256(point.clone()), &[&point])
        }
        _ => return None,
    };
    // A key that is meant for another algorithm is none for this one.
    let meant = text.alg.as_deref().is_none_or(|alg| {
        alg == key.algorithm.as_str() || (alg == "Ed25519" && key.algorithm == JwtAlgorithm::EdDsa)
    });
    meant.then_some(key)
}

/// Some issuers write a number with zeros before it, which ring does not take.
fn without_zeros(bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes[zeros..].to_vec()
}
