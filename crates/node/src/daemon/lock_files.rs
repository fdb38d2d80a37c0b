//! The chain of tailnet lock on disk.
//!
//! The form is that of the official client, so that a machine that changes programs keeps
//! its lock: a folder for each login in `tka-profiles`, in it a file for each message, at
//! `<first two characters of the hash>/<hash>`, and `last_active_ancestor` with the hash
//! of the message with which the chain begins. `warren-server` names the server.
//!
//! A process that is killed at any moment leaves a chain that can be opened. New messages
//! are written first, then the beginning of the chain, and only then old messages are
//! removed; a whole chain is removed by renaming its folder. The lock is on as soon as
//! `last_active_ancestor` is there.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use warren_host::atomic_file::write_atomic;
use warren_lock::{AumHash, StoredAum};
use warren_node_core::node::{KeptLock, StoredChain};

const OLDEST: &str = "last_active_ancestor";
const SERVER: &str = "warren-server";
/// Behind the name of a folder that is being removed.
const REMOVED: &str = "removed";

/// The chain in this folder; none without a folder.
pub(super) fn load(folder: Option<&Path>) -> KeptLock {
    let Some(folder) = folder else {
        return KeptLock::Off;
    };
    // A removal that was interrupted is finished.
    if let Err(error) = remove_folder(&removed(folder)) {
        tracing::warn!(%error, "what is left of a tailnet lock that was turned off cannot be removed");
    }
    match try_load(folder) {
        Ok(None) => KeptLock::Off,
        Ok(Some(chain)) => KeptLock::On(chain),
        Err(error) => {
            tracing::error!(%error, folder = %folder.display(), "the tailnet lock cannot be read");
            KeptLock::Unreadable(error.to_string())
        }
    }
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

fn try_load(folder: &Path) -> io::Result<Option<StoredChain>> {
    let Some(files) = message_files(folder)? else {
        return Ok(None);
    };
    let mut messages = Vec::new();
    for (hash, path) in &files {
        let bytes = std::fs::read(path)?;
        let stored = StoredAum::decode(&bytes)
            .map_err(|error| damaged(format_args!("{}: {error}", path.display())))?;
        let Some(stored) = stored else { continue };
        if stored.aum.hash() != *hash {
            let path = path.display();
            return Err(damaged(format_args!(
                "{path}: the message has another hash"
            )));
        }
        messages.push(stored);
    }
    let oldest = match read_if_there(&folder.join(OLDEST))? {
        Some(bytes) => {
            let bytes = bytes
                .try_into()
                .map_err(|_| damaged(format_args!("{OLDEST} has another length than 32 bytes")))?;
            AumHash::from_bytes(bytes)
        }
        // It is written last: a process was killed while it turned the lock on.
        None => match beginning(&messages)? {
            Some(oldest) => oldest,
            None => return Ok(None),
        },
    };
    let server = read_if_there(&folder.join(SERVER))?.unwrap_or_default();
    Ok(Some(StoredChain {
        messages,
        oldest,
        server: String::from_utf8_lossy(&server).trim().to_owned(),
    }))
}

/// The only message without a parent.
fn beginning(messages: &[StoredAum]) -> io::Result<Option<AumHash>> {
    let mut first = messages
        .iter()
        .filter(|stored| stored.aum.parent().is_none());
    match (first.next(), first.next()) {
        (Some(first), None) => Ok(Some(first.aum.hash())),
        (None, _) if messages.is_empty() => Ok(None),
        _ => Err(damaged(format_args!("{OLDEST} is missing"))),
    }
}

/// Makes the folder hold this chain, or none. Without a folder, nothing is kept.
pub(super) fn store(folder: Option<&Path>, chain: Option<&StoredChain>) -> io::Result<()> {
    let Some(folder) = folder else {
        return Ok(());
    };
    let Some(chain) = chain else {
        let removed = removed(folder);
        remove_folder(&removed)?;
        return match std::fs::rename(folder, &removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                sync_folder(folder.parent());
                remove_folder(&removed)
            }
        };
    };
    let before = message_files(folder)?.unwrap_or_default();
    let known: BTreeSet<AumHash> = before.iter().map(|(hash, _)| *hash).collect();
    let kept: BTreeSet<AumHash> = chain
        .messages
        .iter()
        .map(|stored| stored.aum.hash())
        .collect();
    make_folder(folder)?;
    for stored in &chain.messages {
        let hash = stored.aum.hash();
        if !known.contains(&hash) {
            let path = path_of(folder, hash);
            if let Some(parent) = path.parent() {
                make_folder(parent)?;
            }
            write_atomic(&path, &stored.encode(), 0o600)?;
        }
    }
    write_if_other(&folder.join(SERVER), chain.server.as_bytes())?;
    write_if_other(&folder.join(OLDEST), chain.oldest.as_bytes())?;
    for (hash, path) in before {
        if !kept.contains(&hash) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn path_of(folder: &Path, hash: AumHash) -> PathBuf {
    let name = hash.to_string();
    folder.join(&name[..2]).join(name)
}

fn removed(folder: &Path) -> PathBuf {
    folder.with_extension(REMOVED)
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A folder whose entry survives a loss of power.
fn make_folder(folder: &Path) -> io::Result<()> {
    if !folder.is_dir() {
        std::fs::create_dir_all(folder)?;
        sync_folder(folder.parent());
        sync_folder(folder.parent().and_then(Path::parent));
    }
    Ok(())
}

/// Not all file systems can do it, and then nothing is lost but the safety against a loss
/// of power.
fn sync_folder(folder: Option<&Path>) {
    let synced = folder.map(|folder| std::fs::File::open(folder)?.sync_all());
    if let Some(Err(error)) = synced {
        tracing::debug!(%error, "a folder of tailnet lock is not synchronised");
    }
}

fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn write_if_other(path: &Path, content: &[u8]) -> io::Result<()> {
    if read_if_there(path)?.as_deref() == Some(content) {
        return Ok(());
    }
    write_atomic(path, content, 0o600)
}

/// The files whose names are hashes; `None` without the folder. Others are those of an
/// interrupted write.
fn message_files(folder: &Path) -> io::Result<Option<Vec<(AumHash, PathBuf)>>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(entry.path())? {
            let file = file?;
            let name = file.file_name();
            if let Some(hash) = name.to_str().and_then(|name| name.parse().ok()) {
                files.push((hash, file.path()));
            }
        }
    }
    files.sort();
    Ok(Some(files))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use warren_lock::{
        Authority, Checkpoint, Compaction, DisablementValue, LockSecret, Meta, StateId, TrustedKey,
        Updater,
    };

    use super::*;

    fn key(number: u8) -> TrustedKey {
        let secret = LockSecret::from_seed(&[number; 32]);
        TrustedKey::new(secret.public(), 1, Meta::default()).unwrap()
    }

    /// A lock with so many updates.
    fn authority(updates: u8) -> Authority {
        let signer = LockSecret::from_seed(&[1; 32]);
        let values = vec![DisablementValue::from_bytes([1; 32])];
        let checkpoint = Checkpoint::new(vec![key(1)], values, StateId(1, 2)).unwrap();
        let (mut authority, _) = Authority::create(checkpoint, &signer, 100).unwrap();
        for number in 0..updates {
            let mut updater = Updater::new(&authority, &signer);
            updater.add_key(key(number + 2)).unwrap();
            let updates = updater.finish().unwrap();
            authority.inform(&updates, 100).unwrap();
        }
        authority
    }

    fn chain(authority: &Authority) -> StoredChain {
        StoredChain {
            messages: authority.stored().cloned().collect(),
            oldest: authority.oldest(),
            server: "https://server".to_owned(),
        }
    }

    fn opened(folder: &Path) -> Option<Authority> {
        match load(Some(folder)) {
            KeptLock::Off => None,
            KeptLock::On(chain) => {
                assert_eq!(chain.server, "https://server");
                Some(Authority::open(chain.messages, chain.oldest).unwrap().0)
            }
            KeptLock::Unreadable(why) => panic!("{why}"),
        }
    }

    #[test]
    fn chain_is_read_back_grows_and_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("tka-profiles/0001");
        assert!(opened(&folder).is_none());
        store(Some(&folder), None).unwrap();
        // The checkpoint of the first 50 updates has 24 messages behind it.
        let mut authority = authority(90);
        store(Some(&folder), Some(&chain(&authority))).unwrap();
        assert_eq!(opened(&folder).unwrap().head(), authority.head());
        let removed = authority.compact(u64::MAX, Compaction::default());
        assert!(!removed.is_empty());
        store(Some(&folder), Some(&chain(&authority))).unwrap();
        let read = opened(&folder).unwrap();
        assert_eq!(
            (read.head(), read.oldest()),
            (authority.head(), authority.oldest())
        );
        assert_eq!(read.stored().len(), authority.stored().len());
        store(Some(&folder), None).unwrap();
        assert!(opened(&folder).is_none());
        assert_eq!(
            std::fs::read_dir(root.path().join("tka-profiles"))
                .unwrap()
                .count(),
            0
        );
    }

    /// Each state in which a killed process can leave the folder: a prefix of the steps of
    /// [`store`].
    #[test]
    fn chain_of_a_killed_process_is_the_old_or_the_new_one() {
        let (old, new) = (authority(3), authority(5));
        let root = tempfile::tempdir().unwrap();
        let written = |count: usize| {
            let folder = root.path().join(format!("{count}"));
            store(Some(&folder), Some(&chain(&old))).unwrap();
            let mut messages: Vec<_> = new.log().collect();
            messages.reverse();
            for aum in &messages[..count] {
                let path = path_of(&folder, aum.hash());
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let stored = StoredAum {
                    aum: (*aum).clone(),
                    stored_at: 1,
                };
                std::fs::write(path, stored.encode()).unwrap();
            }
            opened(&folder).unwrap().head()
        };
        for count in 0..=4 {
            assert_eq!(written(count), old.head(), "{count}");
        }
        let between = new.log().nth(1).unwrap().hash();
        assert_eq!((written(5), written(6)), (between, new.head()));

        // Turned on: before the beginning of the chain was written.
        let folder = root.path().join("on");
        std::fs::create_dir_all(&folder).unwrap();
        assert!(opened(&folder).is_none());
        store(Some(&folder), Some(&chain(&authority(0)))).unwrap();
        std::fs::remove_file(folder.join(OLDEST)).unwrap();
        assert!(opened(&folder).is_some());
        // Turned off: after the renaming.
        std::fs::rename(&folder, removed(&folder)).unwrap();
        assert!(opened(&folder).is_none());
        assert!(!removed(&folder).exists());
        // A file that is being written.
        let folder = root.path().join("0");
        std::fs::write(folder.join("AB.tmp"), "x").unwrap();
        std::fs::create_dir_all(folder.join("AB")).unwrap();
        std::fs::write(folder.join("AB/.tmp123"), "x").unwrap();
        assert_eq!(opened(&folder).unwrap().head(), old.head());
    }

    #[test]
    fn damaged_chain_is_never_taken_for_none() {
        let root = tempfile::tempdir().unwrap();
        let authority = authority(2);
        let damages: [fn(&Path, &Path); 5] = [
            |_, genesis| std::fs::write(genesis, "").unwrap(),
            |_, genesis| std::fs::write(genesis, [0xa0]).unwrap(),
            |folder, _| std::fs::write(folder.join(OLDEST), "x").unwrap(),
            |folder, genesis| {
                std::fs::remove_file(folder.join(OLDEST)).unwrap();
                std::fs::remove_file(genesis).unwrap();
            },
            |_, genesis| {
                std::fs::remove_file(genesis).unwrap();
                std::fs::create_dir(genesis).unwrap();
            },
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let folder = root.path().join(number.to_string());
            store(Some(&folder), Some(&chain(&authority))).unwrap();
            damage(&folder, &path_of(&folder, authority.oldest()));
            assert!(
                matches!(load(Some(&folder)), KeptLock::Unreadable(_)),
                "{number}"
            );
        }
        // A chain without its beginning is found by the node, which opens it.
        let folder = root.path().join("gone");
        store(Some(&folder), Some(&chain(&authority))).unwrap();
        std::fs::remove_file(path_of(&folder, authority.oldest())).unwrap();
        let KeptLock::On(chain) = load(Some(&folder)) else {
            panic!("another state")
        };
        assert!(Authority::open(chain.messages, chain.oldest).is_err());
    }

    #[test]
    fn full_disk_is_reported_and_the_old_chain_stays() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("lock");
        let old = authority(1);
        store(Some(&folder), Some(&chain(&old))).unwrap();
        // A file where a folder has to be made stands for a disk that takes no more.
        let new = authority(9);
        let unknown = new.log().find(|aum| old.aum(aum.hash()).is_none()).unwrap();
        let blocked = path_of(&folder, unknown.hash())
            .parent()
            .unwrap()
            .to_owned();
        assert!(!blocked.exists(), "the hashes are always the same");
        std::fs::write(&blocked, "").unwrap();
        assert!(store(Some(&folder), Some(&chain(&new))).is_err());
        let head = opened(&folder).unwrap().head();
        assert!(new.aum(head).is_some());
    }
}
