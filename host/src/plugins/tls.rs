//! TLS under requests to `https` addresses: those of guests, and the host's own for key sets.
//!
//! Promises: a request is sent only once the server has shown a certificate for the very host that the request
//! names, valid now, from an authority that the operating system trusts or that the plugin's `http_ca_file` has.
//! Deliberately absent: a way to leave the check out, client certificates, revocation lists.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::Error;

/// What a plugin's connections trust.
pub(crate) fn client(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let system = system();
    let roots = match ca_file {
        None => system,
        Some(path) => {
            let mut roots = RootCertStore::clone(&system);
            add_file(&mut roots, path).map_err(|why| format!("{} {why}", path.display()))?;
            Arc::new(roots)
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut client = versions.with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(client))
}

/// The authorities of the operating system, read once: where it has none, only those of a file are trusted.
fn system() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (_, unusable) = roots.add_parsable_certificates(found.certs);
        if roots.is_empty() || !found.errors.is_empty() {
            tracing::warn!(error.kind = "tls_roots", error.blame = "host", trusted = roots.len(), unusable, errors = ?found.errors,
                "not all certificates of the operating system can be read; plugins' requests to https addresses trust the rest, and http_ca_file"
            );
        }
        Arc::new(roots)
    };
    Arc::clone(ROOTS.get_or_init(read))
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let text = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let added = certificate.map_err(|error| error.to_string());
        let added = added.and_then(|one| roots.add(one).map_err(|error| error.to_string()));
        added.map_err(|why| format!("has a certificate that is none: {why}"))?;
    }
    if roots.len() == before {
        return Err(
            "has no certificate in it; it should have PEM blocks, `-----BEGIN CERTIFICATE-----`".into()
        );
    }
    Ok(())
}

/// Secures a connection to a host, or says what was wrong with what it showed.
pub(crate) async fn secure(
    client: &Arc<ClientConfig>,
    host: &str,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, io::Error> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(Arc::clone(client)).connect(name, stream).await
}

/// An error of a secured connection in the words of `wasi:http`; none for one that has nothing to do with TLS.
pub(super) fn told(error: &io::Error) -> Option<Error> {
    Some(match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(_)
        | rustls::Error::NoCertificatesPresented
        | rustls::Error::UnsupportedNameType => Error::TlsCertificateError,
        rustls::Error::AlertReceived(alert) => Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: Some(format!("{alert:?}")),
        },
        _ => Error::TlsProtocolError,
    })
}
