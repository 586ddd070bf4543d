//! An issuer of tokens: keys of every kind, a key set behind an address, and tokens with any header and any claims.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace::event::Micros;
use millrace::gateway::{GatewayOptions, JwtKeys, JwtOptions};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::rig::{Answer, NOW, Rig};

pub(super) const SECRET: &[u8] = b"a secret of this test and of 40 bytes...";

/// Of no use outside of these tests: ring makes no RSA keys.
const RSA: &[u8] = include_bytes!("issuer_rsa.der");

pub(super) enum Signer {
    Secret(Vec<u8>),
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    pub(super) fn secret() -> Self {
        Self::Secret(SECRET.into())
    }

    pub(super) fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::from_pkcs8(RSA).expect("a key"))
    }

    pub(super) fn p256() -> Self {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref(), &random);
        Self::P256(pair.expect("a key"))
    }

    pub(super) fn ed25519() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(key.as_ref()).expect("a key"))
    }

    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            Self::Secret(_) => "HS256",
            Self::Rsa(_) => "RS256",
            Self::P256(_) => "ES256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    /// As it stands in a key set.
    pub(super) fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Secret(secret) => json!({ "kty": "oct", "kid": id, "k": encode(secret) }),
            Self::Rsa(_) => {
                let (n, e) = self.modulus();
                json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": id, "n": encode(&n), "e": encode(&e) })
            }
            Self::P256(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "kid": id, "x": encode(x), "y": encode(y) })
            }
            Self::Ed25519(pair) => {
                let x = encode(pair.public_key().as_ref());
                json!({ "kty": "OKP", "crv": "Ed25519", "kid": id, "x": x })
            }
        }
    }

    /// What everybody knows of an RSA key.
    pub(super) fn modulus(&self) -> (Vec<u8>, Vec<u8>) {
        let Self::Rsa(pair) = self else { panic!("only RSA keys have one") };
        let public: ring::rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
        (public.n, public.e)
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Secret(secret) => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
            }
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("signed");
                signature
            }
            Self::P256(pair) => pair.sign(&random, message).expect("signed").as_ref().to_vec(),
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with an honest header.
    pub(super) fn token(&self, id: &str, claims: &Value) -> String {
        self.token_with(&json!({ "alg": self.algorithm(), "typ": "JWT", "kid": id }), claims)
    }

    pub(super) fn token_with(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.sign(message.as_bytes());
        format!("{message}.{}", encode(signature))
    }
}

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.as_ref().chunks(3) {
        let all =
            three.iter().fold(0_u32, |all, byte| all << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..=three.len() {
            text.push(char::from(DIGITS[(all >> (18 - 6 * place)) as usize & 63]));
        }
    }
    text
}

pub(super) fn now() -> i64 {
    Micros::parse(NOW).expect("a time").0 / 1_000_000
}

/// Claims of somebody of tenant `alpha` who may read, for an hour.
pub(super) fn claims() -> Value {
    json!({
        "iss": "https://issuer.example", "aud": ["millrace", "other"], "sub": "ada", "jti": "t1", "tenant": "alpha",
        "rights": ["read"], "iat": now() - 10, "nbf": now() - 10, "exp": now() + 3600,
    })
}

/// The same with some of them changed; null takes one away.
pub(super) fn claims_with(changed: &Value) -> Value {
    let mut all = claims();
    for (name, value) in changed.as_object().expect("claims") {
        match value {
            Value::Null => _ = all.as_object_mut().expect("claims").remove(name),
            value => all[name] = value.clone(),
        }
    }
    all
}

pub(super) fn jwt(keys: JwtKeys) -> JwtOptions {
    JwtOptions {
        issuer: Some("https://issuer.example".into()),
        audience: Some("millrace".into()),
        leeway: Duration::ZERO,
        ..JwtOptions::new(keys)
    }
}

pub(super) fn set(keys: &[Value]) -> Value {
    json!({ "keys": keys })
}

/// A file that is there as long as the guard.
pub(super) fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("written");
    file
}

/// A gateway that takes the tokens of these keys beside the static ones of the rig.
pub(super) async fn rig_of(keys: &Value, change: impl FnOnce(&mut GatewayOptions)) -> Rig {
    let file = file(keys.to_string().as_bytes());
    Rig::with(|options| {
        options.auth = super::rig::tokens();
        options.auth.jwt = Some(jwt(JwtKeys::JwksFile(file.path().into())));
        change(options);
    })
    .await
}

pub(super) async fn get(rig: &Rig, path: &str, token: &str) -> Answer {
    rig.send("GET", path, &[("Authorization", &format!("Bearer {token}"))], b"").await
}

/// A page of the stream, which anybody with the right to read gets.
pub(super) async fn events(rig: &Rig, token: &str) -> Answer {
    get(rig, "/v1/streams/events", token).await
}

/// A key set behind an address of this machine.
pub(super) struct KeyServer {
    pub(super) url: String,
    answer: Arc<Mutex<Option<Vec<u8>>>>,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl KeyServer {
    pub(super) async fn start(keys: &Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let (answer, asked) = (Arc::new(Mutex::new(None)), Arc::new(AtomicUsize::new(0)));
        let (answers, count) = (Arc::clone(&answer), Arc::clone(&asked));
        #[expect(clippy::disallowed_methods, reason = "the test owns the task and ends it")]
        let serving = tokio::spawn(async move {
            let mut silent = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                count.fetch_add(1, Ordering::SeqCst);
                let answer: Option<Vec<u8>> = answers.lock().expect("no panic").clone();
                let Some(answer) = answer else {
                    silent.push(stream);
                    continue;
                };
                let mut head = Vec::new();
                while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a request"));
                }
                // A client that has read enough is gone before the end.
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        });
        let server = Self { url, answer, asked, serving };
        server.show(keys);
        server
    }

    pub(super) fn show(&self, keys: &Value) {
        self.answers("200 OK", keys.to_string().as_bytes());
    }

    pub(super) fn answers(&self, status: &str, body: &[u8]) {
        let mut answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend_from_slice(body);
        *self.answer.lock().expect("no panic") = Some(answer);
    }

    /// Takes connections and says nothing.
    pub(super) fn is_silent(&self) {
        *self.answer.lock().expect("no panic") = None;
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Moves a rig's clock.
pub(super) fn later(rig: &Rig, seconds: i64) {
    use millrace::clock::Clock as _;
    rig.clock.set(Micros(rig.clock.now().0 + seconds * 1_000_000));
}
