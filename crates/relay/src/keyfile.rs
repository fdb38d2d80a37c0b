//! The file with the relay's private key: JSON of mode 0600 in the form
//! that `derper` uses too, so a relay can be replaced and keep its key.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use warren_dial::SystemEntropy;
use warren_keys::{DerpMeshKey, NodeSecret};
use zeroize::Zeroizing;

/// A key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Reading or writing failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path} is not a relay key file ({reason}); restore it, or move it away for a new key")]
    Malformed {
        /// The file's path.
        path: PathBuf,
        /// The reason, as shown to the user.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Content<'a> {
    #[serde(rename = "PrivateKey")]
    private_key: std::borrow::Cow<'a, str>,
}

/// Reads the key in `path`, or makes one and writes it there.
///
/// # Errors
/// [`KeyFileError`]. A file that is there is never overwritten.
pub fn load_or_create(path: &Path) -> Result<NodeSecret, KeyFileError> {
    let io = |action| {
        move |source| KeyFileError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    match std::fs::read_to_string(path).map(Zeroizing::new) {
        Ok(text) => {
            let malformed = |reason: String| KeyFileError::Malformed {
                path: path.to_owned(),
                reason,
            };
            let content: Content<'_> =
                serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
            let secret = content.private_key.parse::<NodeSecret>();
            secret.map_err(|error| malformed(error.to_string()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret = NodeSecret::generate(&mut SystemEntropy);
            let text = secret.to_text();
            let content = Content {
                private_key: text.as_str().into(),
            };
            // One text field always has a JSON form.
            let json = Zeroizing::new(serde_json::to_string(&content).unwrap_or_default());
            write_private(path, json.as_bytes()).map_err(io("write"))?;
            Ok(secret)
        }
        Err(error) => Err(io("read")(error)),
    }
}

/// Writes a file of mode 0600, whole or not at all; makes its folder.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        Some(_) | None => Path::new("."),
    };
    std::fs::create_dir_all(folder)?;
    // Temporary files are created with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Reads the key that the relays of a mesh share: 64 hexadecimal digits.
///
/// # Errors
/// [`KeyFileError`].
pub fn load_mesh_key(path: &Path) -> Result<DerpMeshKey, KeyFileError> {
    let text = std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|source| KeyFileError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
    text.parse().map_err(|_| KeyFileError::Malformed {
        path: path.to_owned(),
        reason: "a mesh key is 64 hexadecimal digits".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn key_is_created_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/relay.key");
        let made = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap(), made);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(r#"{"PrivateKey":"privkey:"#));
    }

    #[test]
    fn damaged_file_is_reported_and_left_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.key");
        for text in ["", "{}", r#"{"PrivateKey":"privkey:00"}"#, "\u{0}"] {
            std::fs::write(&path, text).unwrap();
            let error = load_or_create(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Malformed { .. }), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn mesh_keys_are_trimmed_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh");
        std::fs::write(&path, format!("{}\n", "ab".repeat(32))).unwrap();
        assert_eq!(
            load_mesh_key(&path).unwrap(),
            DerpMeshKey::from_bytes([0xab; 32])
        );
        std::fs::write(&path, "ab").unwrap();
        assert!(load_mesh_key(&path).is_err());
    }
}
