//! The process of a session, from its start to the shell of the user.
//!
//! The daemon starts this program again with the arguments of [`ARGUMENTS`], in `/` and
//! with an empty environment. Standard input is a pipe that carries the [`Spec`] first and,
//! without a terminal, the input of the session behind it. With a terminal, standard output
//! is that terminal. There is one thread, so what changes the ids of a thread changes those
//! of the process.
//!
//! The order: a session of its own, the terminal, groups, group, user, a test that there is
//! no way back, the home folder, and the shell. An error ends the process, with its text on
//! standard error.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::fs::Mode;
use rustix::process::{Gid, Resource, Uid};
use serde::{Deserialize, Serialize};

use crate::inherited_files;

/// The arguments that make this program the process of a session.
pub const ARGUMENTS: [&str; 2] = ["be-child", "ssh"];
/// The exit status when the session cannot begin.
const CANNOT_BEGIN: u8 = 255;
/// The exit status when the shell cannot be started, as shells have it.
const NO_SHELL: u8 = 127;
/// The longest [`Spec`] in bytes: with 65,536 groups.
const LONGEST_SPEC: usize = 4 * 1024 * 1024;
/// The usual limit of open files; the daemon has a higher one.
const OPEN_FILES: u64 = 1024;
/// While this file is there, only root may log in. Its text is shown to the others.
const NO_LOGIN: &str = "/etc/nologin";

/// Everything about a session that its process needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The name of the user.
    pub user: String,
    /// The ids to change to.
    pub uid: u32,
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
    /// The home folder.
    pub home: String,
    /// The login shell.
    pub shell: String,
    /// The command; `None`: an interactive shell.
    pub command: Option<Vec<u8>>,
    /// Whether standard output is a terminal.
    pub has_tty: bool,
    /// The system's `login`, and the address of the client: it opens the session then.
    pub login: Option<(String, String)>,
    /// The whole environment.
    pub environment: Vec<(String, String)>,
}

impl Spec {
    /// The form in the pipe: the length in four bytes, most significant first, and JSON.
    pub(crate) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        let len = u32::try_from(json.len()).map_err(io::Error::other)?;
        Ok([&len.to_be_bytes(), json.as_slice()].concat())
    }

    /// Reads no byte behind the spec: those are for the shell.
    fn read(from: impl Fn(&mut [u8]) -> io::Result<usize>) -> io::Result<Self> {
        let fill = |mut space: &mut [u8]| {
            while !space.is_empty() {
                match from(space)? {
                    0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                    read => space = &mut space[read..],
                }
            }
            Ok(())
        };
        let mut len = [0; 4];
        fill(&mut len)?;
        let len = usize::try_from(u32::from_be_bytes(len)).map_err(io::Error::other)?;
        if len > LONGEST_SPEC {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let mut json = vec![0; len];
        fill(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

/// A step that failed.
struct Failed(String, u8);

fn step<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Failed {
    move |error| Failed(format!("{what}: {error}"), CANNOT_BEGIN)
}

/// Becomes the shell of the session. Returns only if that fails.
pub fn run() -> ExitCode {
    let Err(Failed(text, status)) = begin();
    eprintln!("warren: {text}");
    ExitCode::from(status)
}

fn begin() -> Result<std::convert::Infallible, Failed> {
    inherited_files::close_all().map_err(step("cannot close files"))?;
    let read = |space: &mut [u8]| {
        let read = || rustix::io::read(rustix::stdio::stdin(), &mut *space);
        rustix::io::retry_on_intr(read).map_err(io::Error::from)
    };
    let spec = Spec::read(read).map_err(step("cannot read what the session needs"))?;
    rustix::process::setsid().map_err(step("cannot begin a session"))?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    limit_open_files();
    if spec.has_tty {
        take_terminal(&spec).map_err(step("cannot take the terminal"))?;
    }
    if let Some((program, address)) = &spec.login {
        // It checks the account, opens the PAM session, gives the terminal to the user,
        // shows the message of the day, and drops the privileges.
        let mut command = Command::new(program);
        command.args(["-p", "-h", address, "-f", &spec.user]);
        return Err(become_it(command, &spec));
    }
    drop_privileges(&spec)?;
    refuse_while_closed(&spec)?;
    if let Err(error) = rustix::process::chdir(spec.home.as_str()) {
        eprintln!("warren: cannot enter {:?}: {error}", spec.home);
    }
    Err(become_it(shell(&spec), &spec))
}

/// The daemon may open many files; programs of users expect the usual number.
fn limit_open_files() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.current.map(|current| current.min(OPEN_FILES));
    if limit.current.is_none() {
        limit.current = Some(OPEN_FILES);
    }
    // A higher limit does no harm.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}

/// Makes standard output the controlling terminal, and standard input too.
fn take_terminal(spec: &Spec) -> io::Result<()> {
    rustix::stdio::dup2_stdin(rustix::stdio::stdout())?;
    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    if rustix::process::geteuid().is_root() {
        let terminal = rustix::stdio::stdin();
        let owner = Uid::from_raw(spec.uid);
        rustix::fs::fchown(terminal, Some(owner), None)?;
        rustix::fs::fchmod(terminal, Mode::RUSR | Mode::WUSR | Mode::WGRP)?;
    }
    Ok(())
}

/// Changes to the ids of the user, without a way back.
fn drop_privileges(spec: &Spec) -> Result<(), Failed> {
    let (uid, gid) = (Uid::from_raw(spec.uid), Gid::from_raw(spec.gid));
    if rustix::process::geteuid().is_root() {
        let groups: Vec<Gid> = spec.groups.iter().map(|id| Gid::from_raw(*id)).collect();
        // Where they are in place already, as for root in a user namespace, which may not
        // change them.
        if rustix::process::getgroups().ok().as_ref() != Some(&groups) {
            match rustix::thread::set_thread_groups(&groups) {
                // Root of a user namespace may not, and a session of the daemon's own user
                // gets no more than the daemon has.
                Err(rustix::io::Errno::PERM) if uid == rustix::process::geteuid() => {}
                set => set.map_err(step("cannot set the groups"))?,
            }
        }
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("cannot set the group"))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("cannot set the user"))?;
    }
    if !uid.is_root() {
        // Of a daemon that is not root but has some of its privileges. Others have none left.
        let _ = rustix::thread::clear_ambient_capability_set();
        let none = rustix::thread::CapabilitySets {
            effective: rustix::thread::CapabilitySet::empty(),
            permitted: rustix::thread::CapabilitySet::empty(),
            inheritable: rustix::thread::CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, none).map_err(step("cannot give up privileges"))?;
    }
    let has = (
        rustix::process::getuid(),
        rustix::process::geteuid(),
        rustix::process::getgid(),
        rustix::process::getegid(),
    );
    let is_in_place = has == (uid, uid, gid, gid);
    let has_way_back =
        !uid.is_root() && rustix::thread::set_thread_res_uid(uid, Uid::ROOT, uid).is_ok();
    if !is_in_place || has_way_back {
        let text = format!(
            "the daemon runs as the user {} and cannot change to {:?}; run it as root",
            has.0.as_raw(),
            spec.user
        );
        return Err(Failed(text, CANNOT_BEGIN));
    }
    Ok(())
}

/// Refuses users while logins are closed on this machine.
fn refuse_while_closed(spec: &Spec) -> Result<(), Failed> {
    if spec.uid == 0 || !Path::new(NO_LOGIN).exists() {
        return Ok(());
    }
    let text = std::fs::read_to_string(NO_LOGIN).unwrap_or_default();
    let text = match text.trim() {
        "" => "logins are closed on this machine",
        text => text,
    };
    Err(Failed(text.to_owned(), CANNOT_BEGIN))
}

/// The user's shell: as a login shell, or with the command.
fn shell(spec: &Spec) -> Command {
    let name = Path::new(&spec.shell).file_name();
    let name = name.unwrap_or(OsStr::new("sh"));
    let mut shell = Command::new(&spec.shell);
    match &spec.command {
        None => {
            // A dash in front of the name is the sign for a login shell.
            let mut dashed = OsString::from("-");
            dashed.push(name);
            shell.arg0(dashed);
        }
        Some(command) => {
            shell.arg0(name);
            shell.arg("-c").arg(OsStr::from_bytes(command));
        }
    }
    shell
}

/// Replaces this process. Standard handling of signals is restored with it.
fn become_it(mut command: Command, spec: &Spec) -> Failed {
    let program = command.get_program().to_owned();
    command.env_clear().envs(spec.environment.iter().cloned());
    let error = command.exec();
    let shown = CString::new(program.into_vec()).unwrap_or_default();
    Failed(format!("cannot start {shown:?}: {error}"), NO_SHELL)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    /// Reads `text` in pieces of some length; returns the spec and what was not read.
    fn read(text: &[u8], piece: usize) -> (io::Result<Spec>, Vec<u8>) {
        let rest = RefCell::new(text);
        let spec = Spec::read(|space| {
            let mut rest = rest.borrow_mut();
            let len = space.len().min(piece).min(rest.len());
            space[..len].copy_from_slice(&rest[..len]);
            *rest = &rest[len..];
            Ok(len)
        });
        (spec, rest.borrow().to_vec())
    }

    proptest! {
        #[test]
        fn a_spec_is_read_as_written_and_nothing_behind_it(
            user in ".*",
            command in prop::option::of(prop::collection::vec(any::<u8>(), 0..50)),
            groups in prop::collection::vec(any::<u32>(), 0..9),
            environment in prop::collection::vec((".*", ".*"), 0..4),
            behind in prop::collection::vec(any::<u8>(), 0..9),
            piece in 1_usize..20,
        ) {
            let spec = Spec {
                user, uid: 1, gid: 2, groups, home: "/".into(), shell: "/bin/sh".into(),
                command, has_tty: true, login: None, environment,
            };
            let text = [spec.to_bytes().unwrap(), behind.clone()].concat();
            let (read, rest) = read(&text, piece);
            prop_assert_eq!(read.unwrap(), spec);
            prop_assert_eq!(rest, behind);
        }

        #[test]
        fn any_other_input_is_refused(text in prop::collection::vec(any::<u8>(), 0..60)) {
            let (read, _) = read(&text, 7);
            prop_assert!(read.is_err());
        }
    }
}
