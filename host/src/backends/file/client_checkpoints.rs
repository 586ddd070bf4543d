//! Checkpoints of clients in a folder, sealed: one file a client, replaced whole.
//!
//! A file is sealed with AES-256-GCM for its tenant, its client and its content type: copied to another client's name it does
//! not open. The key lies beside the folder, for the owner of the process alone. Names of files are digests.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha256};

use super::control::disk;
use crate::checkpoints::{
    ClientCheckpoint, ClientCheckpointError, ClientCheckpoints, ClientId, ClientValue, NewClientCheckpoint,
};
use crate::clock::Clock;
use crate::error::BackendError;
use crate::event::{Micros, Revision, TenantId};
use crate::limits::{CLIENT_CHECKPOINT_BYTES_MAX, CLIENT_CHECKPOINTS_MAX, CLIENT_NAME_BYTES_MAX};

/// Begins each file; another number means another layout.
const MAGIC: &[u8] = b"mrcc1";
const KEY_BYTES: usize = 32;
/// The time, the revision, and which of the two kinds of values it is.
const NUMBERS_BYTES: usize = 8 + 8 + 1;
/// What a file has besides the value.
const EXTRA_BYTES: usize = CLIENT_NAME_BYTES_MAX + (1 << 10);

type Outcome<T> = Result<T, ClientCheckpointError>;

/// Where a host keeps the checkpoints of its clients.
#[derive(Debug)]
pub struct FileClientCheckpoints {
    folder: Arc<Folder>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct Folder {
    dir: PathBuf,
    key: PathBuf,
    /// One put at a time: each reads the revision that it follows.
    putting: Mutex<()>,
}

/// Whose file it is.
struct Owner {
    tenant: TenantId,
    client: ClientId,
}

impl FileClientCheckpoints {
    /// Below the folder of a store. Folder and key are made when the first checkpoint comes.
    pub fn new(store: &Path, clock: Arc<dyn Clock>) -> Self {
        let folder = Folder {
            dir: store.join("client-checkpoints"),
            key: store.join("client-checkpoints.key"),
            putting: Mutex::default(),
        };
        Self { folder: Arc::new(folder), clock }
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Outcome<T> + Send + 'static,
    ) -> Outcome<T> {
        let folder = Arc::clone(&self.folder);
        match tokio::task::spawn_blocking(move || work(&folder)).await {
            Ok(done) => done,
            Err(panicked) => Err(BackendError::Failed { detail: panicked.to_string() }.into()),
        }
    }
}

impl ClientCheckpoints for FileClientCheckpoints {
    fn get<'a>(
        &'a self,
        tenant: &'a TenantId,
        client: &'a ClientId,
    ) -> BoxFuture<'a, Outcome<Option<ClientCheckpoint>>> {
        let owner = Owner { tenant: tenant.clone(), client: client.clone() };
        self.work(move |folder| folder.get(&owner)).boxed()
    }

    fn put<'a>(
        &'a self,
        tenant: &'a TenantId,
        client: &'a ClientId,
        put: NewClientCheckpoint,
    ) -> BoxFuture<'a, Outcome<ClientCheckpoint>> {
        let (owner, now) = (Owner { tenant: tenant.clone(), client: client.clone() }, self.clock.now());
        self.work(move |folder| folder.put(&owner, put, now)).boxed()
    }
}

impl Folder {
    fn tenant_dir(&self, owner: &Owner) -> PathBuf {
        self.dir.join(digest(owner.tenant.as_str()))
    }

    fn path(&self, owner: &Owner) -> PathBuf {
        self.tenant_dir(owner).join(digest(owner.client.as_str()))
    }

    fn get(&self, owner: &Owner) -> Outcome<Option<ClientCheckpoint>> {
        let path = self.path(owner);
        let bytes = match read(&path, CLIENT_CHECKPOINT_BYTES_MAX + EXTRA_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path, &error)),
        };
        let key = self.key()?.ok_or_else(|| self.no_key())?;
        open(&key, owner, bytes).map(Some).map_err(|why| unreadable(&path, why))
    }

    fn put(&self, owner: &Owner, put: NewClientCheckpoint, now: Micros) -> Outcome<ClientCheckpoint> {
        let bytes = put.value.bytes().len();
        if bytes > CLIENT_CHECKPOINT_BYTES_MAX {
            return Err(ClientCheckpointError::TooLarge { bytes });
        }
        // A panic elsewhere leaves a file that is whole: it is named last.
        let _putting = self.putting.lock().unwrap_or_else(PoisonError::into_inner);
        let (dir, path) = (self.tenant_dir(owner), self.path(owner));
        let before = self.get(owner)?;
        let key = match self.key()? {
            Some(key) => key,
            // Another key would shut what was sealed with the lost one for good.
            None if self.dir.exists() => return Err(self.no_key()),
            None => self.make_key().map_err(|error| failed(&self.key, &error))?,
        };
        disk::make_folder(&dir).map_err(|error| failed(&dir, &error))?;
        if before.is_none()
            && fs::read_dir(&dir).map_err(|error| failed(&dir, &error))?.count() >= CLIENT_CHECKPOINTS_MAX
        {
            return Err(ClientCheckpointError::TooMany);
        }
        let kept = ClientCheckpoint {
            client: owner.client.clone(),
            content_type: put.content_type,
            value: put.value,
            updated_at: now,
            revision: Revision(before.map_or(0, |before| before.revision.0) + 1),
        };
        let sealed = seal(&key, owner, &kept).map_err(|why| unreadable(&path, why))?;
        // Staged in the folder above: what a crash leaves there is no client's.
        disk::replace(&self.dir, &path, &sealed).map_err(|error| failed(&path, &error))?;
        Ok(kept)
    }

    fn key(&self) -> Outcome<Option<LessSafeKey>> {
        let bytes = match read(&self.key, KEY_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&self.key, &error)),
        };
        let key = UnboundKey::new(&AES_256_GCM, &bytes)
            .map_err(|_| unreadable(&self.key, "the key does not have 32 bytes"))?;
        Ok(Some(LessSafeKey::new(key)))
    }

    /// Durable before anything is sealed with it.
    fn make_key(&self) -> io::Result<LessSafeKey> {
        let mut bytes = [0; KEY_BYTES];
        let no_chance = |_| io::Error::other("the system gives no random bytes");
        SystemRandom::new().fill(&mut bytes).map_err(no_chance)?;
        let dir = self.key.parent().unwrap_or(Path::new("."));
        disk::make_folder(dir)?;
        let mut staged =
            tempfile::Builder::new().permissions(Permissions::from_mode(0o600)).tempfile_in(dir)?;
        staged.write_all(&bytes)?;
        staged.as_file().sync_all()?;
        staged.persist(&self.key).map_err(|error| error.error)?;
        disk::sync_folder(dir)?;
        let key =
            UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| io::Error::other("no key of 32 bytes"))?;
        Ok(LessSafeKey::new(key))
    }

    fn no_key(&self) -> ClientCheckpointError {
        unreadable(&self.key, "the key is gone; bring it back, or remove the folder of the checkpoints")
    }
}

/// Everything that a file is bound to, each part with its length.
fn bound_to(owner: &Owner, content_type: &str) -> Aad<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    for part in [owner.tenant.as_str(), owner.client.as_str(), content_type] {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    Aad::from(bytes)
}

fn seal(key: &LessSafeKey, owner: &Owner, kept: &ClientCheckpoint) -> Result<Vec<u8>, &'static str> {
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new().fill(&mut nonce).map_err(|_| "the system gives no random bytes")?;
    let (kind, value) = match &kept.value {
        ClientValue::Json(text) => (0, text.as_bytes()),
        ClientValue::Proto(bytes) => (1, bytes.as_slice()),
    };
    let mut inner = Vec::with_capacity(NUMBERS_BYTES + value.len() + AES_256_GCM.tag_len());
    inner.extend_from_slice(&kept.updated_at.0.to_le_bytes());
    inner.extend_from_slice(&kept.revision.0.to_le_bytes());
    inner.push(kind);
    inner.extend_from_slice(value);
    let aad = bound_to(owner, &kept.content_type);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut inner)
        .map_err(|_| "it cannot be sealed")?;
    let content_type = kept.content_type.as_bytes();
    let length = u16::try_from(content_type.len()).map_err(|_| "its content type is too long")?;
    let mut file = MAGIC.to_vec();
    file.extend_from_slice(&length.to_le_bytes());
    file.extend_from_slice(content_type);
    file.extend_from_slice(&nonce);
    file.append(&mut inner);
    Ok(file)
}

fn open(key: &LessSafeKey, owner: &Owner, mut file: Vec<u8>) -> Result<ClientCheckpoint, &'static str> {
    const BROKEN: &str = "it is no checkpoint of a client";
    let rest = file.strip_prefix(MAGIC).ok_or(BROKEN)?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or(BROKEN)?;
    let (content_type, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into()).ok_or(BROKEN)?;
    let content_type = std::str::from_utf8(content_type).map_err(|_| BROKEN)?.to_owned();
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(BROKEN)?;
    let (nonce, begin) = (Nonce::assume_unique_for_key(*nonce), file.len() - sealed.len());
    let aad = bound_to(owner, &content_type);
    let opened = key
        .open_in_place(nonce, aad, &mut file[begin..])
        .map_err(|_| "it was sealed for another client or with another key, or it was changed")?;
    let (at, rest) = opened.split_first_chunk::<8>().ok_or(BROKEN)?;
    let (revision, rest) = rest.split_first_chunk::<8>().ok_or(BROKEN)?;
    let (kind, value) = rest.split_first().ok_or(BROKEN)?;
    let value = match kind {
        0 => ClientValue::Json(String::from_utf8(value.to_vec()).map_err(|_| BROKEN)?),
        1 => ClientValue::Proto(value.to_vec()),
        _ => return Err(BROKEN),
    };
    Ok(ClientCheckpoint {
        client: owner.client.clone(),
        content_type,
        value,
        updated_at: Micros(i64::from_le_bytes(*at)),
        revision: Revision(u64::from_le_bytes(*revision)),
    })
}

fn digest(name: &str) -> String {
    Sha256::digest(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// No more than shows that it is too long.
fn read(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    OpenOptions::new().read(true).open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn failed(path: &Path, error: &io::Error) -> ClientCheckpointError {
    let detail = format!("{}: {error}", path.display());
    let error = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => BackendError::DiskFull { detail },
        _ => BackendError::Failed { detail },
    };
    error.into()
}

fn unreadable(path: &Path, why: &str) -> ClientCheckpointError {
    ClientCheckpointError::Unreadable { detail: format!("{}: {why}", path.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn put(text: &str) -> NewClientCheckpoint {
        NewClientCheckpoint { content_type: "application/json".into(), value: ClientValue::Json(text.into()) }
    }

    fn owner(client: &str) -> (TenantId, ClientId) {
        (TenantId::new("default").unwrap(), ClientId::new(client).unwrap())
    }

    #[tokio::test]
    async fn r34_a_file_that_was_copied_to_another_client_does_not_open() {
        let store = tempfile::tempdir().unwrap();
        let clients = FileClientCheckpoints::new(store.path(), Arc::new(SystemClock));
        let ((tenant, one), (_, other)) = (owner("one"), owner("other"));
        clients.put(&tenant, &one, put("\"a secret\"")).await.unwrap();
        let folder = &clients.folder;
        let path = |client: &ClientId| folder.path(&Owner { tenant: tenant.clone(), client: client.clone() });
        let file = fs::read(path(&one)).unwrap();
        assert!(!file.windows(8).any(|part| part == b"a secret"), "it is sealed");
        fs::write(path(&other), &file).unwrap();
        let refused = clients.get(&tenant, &other).await.unwrap_err();
        assert!(matches!(refused, ClientCheckpointError::Unreadable { .. }), "{refused}");
        assert_eq!(clients.get(&tenant, &one).await.unwrap().unwrap().revision, Revision(1));
        let mode = fs::metadata(&folder.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_key_that_is_gone_is_not_made_anew() {
        let store = tempfile::tempdir().unwrap();
        let clients = FileClientCheckpoints::new(store.path(), Arc::new(SystemClock));
        let (tenant, one) = owner("one");
        clients.put(&tenant, &one, put("1")).await.unwrap();
        let key = fs::read(&clients.folder.key).unwrap();
        fs::remove_file(&clients.folder.key).unwrap();
        for client in ["one", "two"] {
            let refused = clients.put(&tenant, &owner(client).1, put("2")).await.unwrap_err();
            assert!(refused.to_string().contains("the key is gone"), "{refused}");
        }
        fs::write(&clients.folder.key, key).unwrap();
        let kept = clients.get(&tenant, &one).await.unwrap().unwrap();
        assert_eq!((kept.value, kept.revision), (ClientValue::Json("1".into()), Revision(1)));
    }
}
