//! The accounts of this machine.
//!
//! A program that is linked statically does not load the modules of the name service, so
//! users of LDAP and the like are looked up by `getent` and `id`, which the system has.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use warren_ssh_policy::Account;

/// The longest file or answer that is read.
const LONGEST: u64 = 16 * 1024 * 1024;
/// The longest name of a user.
const LONGEST_NAME: usize = 256;
/// Time for a program of the name service.
const PATIENCE: Duration = Duration::from_secs(10);
/// Groups of a process, as the kernel allows.
const MOST_GROUPS: usize = 65_536;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The user's id.
    pub uid: u32,
    /// The first group's id.
    pub gid: u32,
    /// The home folder; may be missing.
    pub home: String,
    /// The login shell.
    pub shell: String,
}

/// Where accounts are looked up.
#[derive(Debug, Clone)]
pub struct Accounts {
    passwd: PathBuf,
    group: PathBuf,
    name_service: bool,
}

impl Accounts {
    /// Those of the system.
    pub fn of_system() -> Self {
        Self {
            passwd: "/etc/passwd".into(),
            group: "/etc/group".into(),
            name_service: true,
        }
    }

    /// Those in two files, in the form of `/etc/passwd` and `/etc/group`.
    pub fn in_files(passwd: PathBuf, group: PathBuf) -> Self {
        Self {
            passwd,
            group,
            name_service: false,
        }
    }

    /// The user with this name.
    ///
    /// # Errors
    /// When the accounts cannot be read.
    pub async fn find(&self, name: &str) -> io::Result<Option<User>> {
        if !is_name(name) {
            return Ok(None);
        }
        let file = read(&self.passwd).await?;
        if let Some(user) = file.lines().find_map(|line| user(line, name)) {
            return Ok(Some(user));
        }
        if !self.name_service {
            return Ok(None);
        }
        let Some(answer) = ask("getent", &["passwd", name]).await else {
            return Ok(None);
        };
        Ok(answer.lines().find_map(|line| user(line, name)))
    }

    /// The groups of a user, the first one too.
    ///
    /// # Errors
    /// When the groups cannot be read.
    pub async fn groups(&self, user: &User) -> io::Result<Vec<u32>> {
        let mut groups = vec![user.gid];
        let answer = match self.name_service {
            true => ask("id", &["-G", "--", &user.name]).await,
            false => None,
        };
        if let Some(answer) = answer {
            groups.extend(
                answer
                    .split_ascii_whitespace()
                    .filter_map(|id| id.parse::<u32>().ok()),
            );
        } else {
            let file = read(&self.group).await?;
            groups.extend(file.lines().filter_map(|line| group(line, &user.name)));
        }
        groups.sort_unstable();
        groups.dedup();
        groups.truncate(MOST_GROUPS);
        Ok(groups)
    }
}

/// The kind of an account, for the policy.
pub(crate) fn kind(user: Option<&User>) -> Account {
    match user {
        None => Account::Missing,
        Some(user) if user.uid == 0 => Account::Root,
        Some(_) => Account::Ordinary,
    }
}

/// Whether a text can be the name of a user. Numbers are not: tools take them for ids.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-@$+\\".contains(&byte);
    (1..=LONGEST_NAME).contains(&name.len())
        && !name.starts_with(['-', '+'])
        && name.bytes().all(is_plain)
        && !name.bytes().all(|byte| byte.is_ascii_digit())
}

/// The user of a line of `/etc/passwd`, if it is this one.
fn user(line: &str, name: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let &[found, _, uid, gid, _, home, shell] = fields.as_slice() else {
        return None;
    };
    if found != name {
        return None;
    }
    let or = |text: &str, default: &str| match text.is_empty() {
        true => default.to_owned(),
        false => text.to_owned(),
    };
    Some(User {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: or(home, "/"),
        shell: or(shell, "/bin/sh"),
    })
}

/// The id of a line of `/etc/group`, if the user is a member.
fn group(line: &str, name: &str) -> Option<u32> {
    let fields: Vec<&str> = line.split(':').collect();
    let &[_, _, gid, members] = fields.as_slice() else {
        return None;
    };
    let is_member = members.split(',').any(|member| member == name);
    gid.parse().ok().filter(|_| is_member)
}

async fn read(path: &PathBuf) -> io::Result<String> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(LONGEST).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The output of a program that ends well. `None`: it is not there, failed, or took too
/// long.
async fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let asking = async {
        let mut child = command.spawn().ok()?;
        let mut answer = Vec::new();
        let output = child.stdout.take()?;
        output.take(LONGEST).read_to_end(&mut answer).await.ok()?;
        let status = child.wait().await.ok()?;
        status
            .success()
            .then(|| String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(PATIENCE, asking).await.ok()?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn files(passwd: &str, group: &str) -> (tempfile::TempDir, Accounts) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let accounts = Accounts::in_files(write("passwd", passwd), write("group", group));
        (folder, accounts)
    }

    #[tokio::test]
    async fn users_are_found_by_their_whole_name() {
        let (_folder, accounts) = files(
            "root:x:0:0::/root:/bin/bash\nbob:x:1001:1002:Bob,,,:/home/bob:/bin/zsh\n\
             plain:x:7:7:::\nbad:x:no:7::/:/bin/sh\nshort:x:1\n-o:x:1:1::/:/bin/sh\n42:x:1:1::/:/bin/sh\n",
            "",
        );
        let bob = accounts.find("bob").await.unwrap().unwrap();
        assert_eq!((bob.uid, bob.gid), (1001, 1002));
        assert_eq!(
            (bob.home.as_str(), bob.shell.as_str()),
            ("/home/bob", "/bin/zsh")
        );
        let plain = accounts.find("plain").await.unwrap().unwrap();
        assert_eq!(
            (plain.home.as_str(), plain.shell.as_str()),
            ("/", "/bin/sh")
        );
        for name in [
            "bo", "", "bad", "short", "-o", "42", "bob:x", "bob\n", "../bob", "b\u{1b}b",
        ] {
            assert_eq!(accounts.find(name).await.unwrap(), None, "{name:?}");
        }
    }

    #[tokio::test]
    async fn a_user_is_in_all_of_65535_groups() {
        let lines = (1..=65_535).map(|id| format!("g{id}:x:{id}:eve,bob\n"));
        let (_folder, accounts) =
            files("bob:x:1001:70000::/:/bin/sh\n", &lines.collect::<String>());
        let bob = accounts.find("bob").await.unwrap().unwrap();
        let groups = accounts.groups(&bob).await.unwrap();
        assert_eq!(groups.len(), 65_536);
        assert!(groups.contains(&70_000) && groups.contains(&65_535));
    }

    #[tokio::test]
    async fn the_system_knows_root() {
        let accounts = Accounts::of_system();
        let root = accounts.find("root").await.unwrap().unwrap();
        assert_eq!(kind(Some(&root)), Account::Root);
        assert!(accounts.groups(&root).await.unwrap().contains(&root.gid));
    }
}
