//! The parent's side of the process of a session.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use crate::child::{ARGUMENTS, Spec};
use crate::pty_end;
use crate::terminal_modes::{self, Mode};

/// The terminal that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// The kind, for `TERM`.
    pub kind: String,
    pub size: Size,
    pub modes: Vec<Mode>,
}

/// The size of a terminal, in characters and in pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub columns: u16,
    pub rows: u16,
    pub width: u16,
    pub height: u16,
}

impl From<Size> for Winsize {
    fn from(size: Size) -> Self {
        Self {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: size.width,
            ws_ypixel: size.height,
        }
    }
}

/// A process that has been started.
pub(crate) struct Started {
    pub child: Child,
    /// Takes the spec first.
    pub input: ChildStdin,
    pub output: Output,
}

/// Where the output of a process comes from.
pub(crate) enum Output {
    Terminal(AsyncFd<OwnedFd>),
    Pipes(ChildStdout, ChildStderr),
}

/// Starts the process of a session: this program again. `spec` goes into its input later.
///
/// # Errors
/// When the system has no terminal or process left.
pub(crate) fn start(program: &PathBuf, terminal: Option<&Terminal>) -> io::Result<Started> {
    let mut command = Command::new(program);
    command
        .args(ARGUMENTS)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped());
    let opened = terminal.map(open).transpose()?;
    let master = match opened {
        Some((master, slave)) => {
            command.stdout(slave.try_clone()?).stderr(slave);
            Some(master)
        }
        None => {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            None
        }
    };
    let mut child = command.spawn()?;
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let input = child.stdin.take().ok_or_else(gone)?;
    let output = match master {
        Some(master) => Output::Terminal(pty_end::register(master)?),
        None => Output::Pipes(
            child.stdout.take().ok_or_else(gone)?,
            child.stderr.take().ok_or_else(gone)?,
        ),
    };
    Ok(Started {
        child,
        input,
        output,
    })
}

/// Opens a terminal: both ends.
fn open(terminal: &Terminal) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::termios::tcsetwinsize(&slave, terminal.size.into())?;
    let mut settings = rustix::termios::tcgetattr(&slave)?;
    terminal_modes::apply(&mut settings, &terminal.modes);
    rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &settings)?;
    Ok((master, slave))
}

/// The bytes with which the input of a process begins.
///
/// # Errors
/// When the spec is too long.
pub(crate) fn preamble(spec: &Spec) -> io::Result<Vec<u8>> {
    spec.to_bytes()
}
