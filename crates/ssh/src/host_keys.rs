//! The host keys: made once, kept in the state folder, announced to the network.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::Ed25519Keypair;
use zeroize::Zeroizing;

/// The name of our own key.
const OWN: &str = "ssh_host_ed25519_key";
/// Keys of the system's own SSH server, which clients may know already.
const OF_SYSTEM: [&str; 2] = ["ssh_host_ed25519_key", "ssh_host_ecdsa_key"];
/// The longest file of a key.
const LONGEST: u64 = 64 * 1024;

/// The host keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// A file or folder.
    #[error("cannot keep the SSH host key at {}: {source}; check the state folder", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The system gives no random bytes.
    #[error("cannot make an SSH host key: {0}")]
    Random(#[source] io::Error),
    /// The content of the file.
    #[error("{} is no SSH host key ({reason}); remove it to have a new one made", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

/// The host keys of a node.
#[derive(Clone)]
pub struct HostKeys {
    keys: Vec<PrivateKey>,
}

impl HostKeys {
    /// Loads the keys. `folder` is for our own, which is made if it is not there; `None`: it
    /// is made for this process alone.
    /// `of_system`: the folder of the system's SSH server, whose keys are used where they
    /// can be read; an Ed25519 key in it takes the place of our own.
    ///
    /// # Errors
    /// [`HostKeyError`] about our own key.
    pub fn load(folder: Option<&Path>, of_system: Option<&Path>) -> Result<Self, HostKeyError> {
        let mut keys: Vec<PrivateKey> = Vec::new();
        for name in OF_SYSTEM {
            let path = of_system.map(|folder| folder.join(name));
            let text = path.and_then(|path| read(&path).ok());
            // A key that needs a passphrase, or of another form, is not ours to judge.
            keys.extend(text.and_then(|text| PrivateKey::from_openssh(text.as_bytes()).ok()));
        }
        keys.retain(|key| !key.is_encrypted());
        if !keys
            .iter()
            .any(|key| key.algorithm().as_str() == "ssh-ed25519")
        {
            let key = match folder {
                Some(folder) => own(folder)?,
                None => generate().map_err(HostKeyError::Random)?,
            };
            keys.insert(0, key);
        }
        Ok(Self { keys })
    }

    /// The public keys, each as a line of an `authorized_keys` file without a comment.
    pub fn public_lines(&self) -> Vec<String> {
        let lines = self.keys.iter().filter_map(|key| {
            let mut public = key.public_key().clone();
            public.set_comment("");
            public.to_openssh().ok()
        });
        lines.map(|line| line.trim().to_owned()).collect()
    }

    pub(crate) fn private_keys(&self) -> Vec<PrivateKey> {
        self.keys.clone()
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let file = std::fs::File::open(path)?;
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Our own key.
fn own(folder: &Path) -> Result<PrivateKey, HostKeyError> {
    let path = folder.join(OWN);
    match read(&path) {
        Ok(text) => {
            PrivateKey::from_openssh(text.as_bytes()).map_err(|error| HostKeyError::Content {
                path,
                reason: error.to_string(),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(folder, &path).map_err(|source| HostKeyError::File { path, source })
        }
        Err(source) => Err(HostKeyError::File { path, source }),
    }
}

fn generate() -> io::Result<PrivateKey> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(io::Error::other)?;
    Ok(PrivateKey::from(Ed25519Keypair::from_seed(&seed)))
}

/// Makes a key. It is complete under its name, or not there at all.
fn make(folder: &Path, path: &Path) -> io::Result<PrivateKey> {
    let key = generate()?;
    let text = key
        .to_openssh(Default::default())
        .map_err(io::Error::other)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let new = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    std::fs::File::open(folder)?.sync_all()?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("ssh");
        let first = HostKeys::load(Some(&folder), None).unwrap().public_lines();
        assert_eq!(first.len(), 1);
        assert!(first[0].starts_with("ssh-ed25519 AAAA"), "{first:?}");
        assert_eq!(first[0].split(' ').count(), 2, "no comment");
        assert_eq!(
            HostKeys::load(Some(&folder), None).unwrap().public_lines(),
            first
        );
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join(OWN)), 0o600);
    }

    #[test]
    fn the_key_of_the_system_takes_the_place_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let (system, ours) = (folder.path().join("system"), folder.path().join("ours"));
        let of_system = HostKeys::load(Some(&system), None).unwrap().public_lines();
        let used = HostKeys::load(Some(&ours), Some(&system)).unwrap();
        assert_eq!(used.public_lines(), of_system);
        assert!(!ours.exists());
        std::fs::write(system.join(OWN), "garbage").unwrap();
        let used = HostKeys::load(Some(&ours), Some(&system)).unwrap();
        assert_ne!(used.public_lines(), of_system);
    }

    #[test]
    fn a_damaged_key_of_ours_is_reported_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(OWN), "garbage").unwrap();
        let error = HostKeys::load(Some(folder.path()), None).err().unwrap();
        assert!(error.to_string().contains("remove it"), "{error}");
        assert_eq!(std::fs::read(folder.path().join(OWN)).unwrap(), b"garbage");
    }
}
