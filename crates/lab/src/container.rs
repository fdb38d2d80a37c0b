//! Nodes in containers: an entry point, as process 1, starts the node with settings from
//! the environment.
//!
//! A container of the lab has the processes, the `/run` and the `PATH` of a container; its
//! network is that of its host, and the other files are those of this machine.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

use crate::network::{Host, LabError, which};
use crate::program::{Program, foreign, last_lines, ours};
use crate::wait::{PATIENCE, until};

/// The program that a container starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// The official `containerboot`, with our node under the names of the official one.
    Containerboot,
    /// `warren container`.
    Warren,
}

impl EntryPoint {
    /// The program and its arguments; `None` when it is not installed.
    fn command(self) -> Result<Option<Vec<String>>, LabError> {
        let shown = |program: PathBuf| program.display().to_string();
        Ok(match self {
            Self::Containerboot => foreign("containerboot").map(|program| vec![shown(program)]),
            Self::Warren => Some(vec![shown(ours("warren")?), "container".to_owned()]),
        })
    }
}

/// A running container.
pub struct Container {
    host: Host,
    program: Program,
    entry: EntryPoint,
    environment: Vec<(String, String)>,
    is_privileged: bool,
}

impl Container {
    /// Starts a container on `host` with these variables. Without privileges it has no
    /// capabilities, as most containers. `None` when the entry point is not installed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        host: &Host,
        entry: EntryPoint,
        is_privileged: bool,
        environment: &[(&str, &str)],
    ) -> Result<Option<Self>, LabError> {
        let Some(command) = entry.command()? else {
            return Ok(None);
        };
        host.run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
        let bin = programs(host);
        std::fs::create_dir_all(&bin)?;
        for name in ["tailscale", "tailscaled"] {
            symlink(ours("warren")?, bin.join(name))?;
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let fixed = [
            ("PATH", format!("{}:{path}", bin.display())),
            ("TS_SOCKET", socket(host)),
        ];
        let fixed = fixed.map(|(name, value)| (name.to_owned(), value));
        let given = environment.iter();
        let given = given.map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let environment: Vec<_> = fixed.into_iter().chain(given).collect();
        let program = start(host, &command, &environment, is_privileged)?;
        Ok(Some(Self {
            host: host.clone(),
            program,
            entry,
            environment,
            is_privileged,
        }))
    }

    /// Starts the container again after it has ended, with these variables in addition.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, more: &[(&str, &str)]) -> Result<(), LabError> {
        for &(name, value) in more {
            self.environment.retain(|(known, _)| known != name);
            self.environment.push((name.to_owned(), value.to_owned()));
        }
        let command = self.entry.command()?;
        let command = command.ok_or_else(|| LabError::new("the entry point is gone"))?;
        self.program = start(&self.host, &command, &self.environment, self.is_privileged)?;
        Ok(())
    }

    /// The output of the container, also from before it was started again.
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// Waits until the entry point has reported `count` times that the node is up.
    ///
    /// # Errors
    /// When the container ends before.
    pub fn wait_until_up(&mut self, count: usize) -> Result<(), LabError> {
        const LINE: &str = "Startup complete, waiting for shutdown signal";
        until("the container to be up", PATIENCE, || {
            if let Err(ended) = self.program.check_alive() {
                return Ok(Err(ended));
            }
            let log = self.program.log();
            if log.matches(LINE).count() >= count {
                Ok(Ok(()))
            } else {
                Err(last_lines(&log, 10))
            }
        })?
    }

    /// Waits until the container has ended by itself.
    ///
    /// # Errors
    /// When it goes on.
    pub fn wait_until_ended(&mut self) -> Result<(), LabError> {
        until("the container to end", PATIENCE, || {
            match self.program.check_alive() {
                Err(_) => Ok(()),
                Ok(()) => Err(last_lines(&self.program.log(), 10)),
            }
        })
    }

    /// Stops the container as a container runtime does: with SIGTERM for process 1.
    ///
    /// # Errors
    /// When it goes on.
    pub fn stop(&mut self) -> Result<(), LabError> {
        let parent = self.program.pid();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        let first = children.split_whitespace().next();
        let first = first.and_then(|id| Pid::from_raw(id.parse().ok()?));
        let first = first.ok_or_else(|| LabError::new("the container has ended"))?;
        kill_process(first, Signal::TERM)
            .map_err(|errno| LabError::new(format!("cannot signal the container: {errno}")))?;
        self.wait_until_ended()
    }

    /// Runs the command line of the node under its official name.
    ///
    /// # Errors
    /// When it fails; the text holds what it printed.
    pub fn cli(&self, arguments: &[&str]) -> Result<String, LabError> {
        let socket = format!("--socket={}", socket(&self.host));
        let tailscale = programs(&self.host).join("tailscale").display().to_string();
        self.host
            .run(&tailscale, &[&[socket.as_str()], arguments].concat())
    }
}

/// The folder of programs in the `PATH` of the container.
fn programs(host: &Host) -> PathBuf {
    host.folder().join("bin")
}

fn socket(host: &Host) -> String {
    host.folder().join("tailscaled.sock").display().to_string()
}

/// Starts `command` as process 1 of its own.
fn start(
    host: &Host,
    command: &[String],
    environment: &[(String, String)],
    is_privileged: bool,
) -> Result<Program, LabError> {
    let find = |name: &str| {
        which(name).ok_or_else(|| LabError::new(format!("the program {name} is not installed")))
    };
    let mut words = ["--pid", "--fork", "--kill-child"]
        .map(str::to_owned)
        .to_vec();
    if !is_privileged {
        words.push(find("setpriv")?.display().to_string());
        let without = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"];
        words.extend(without.map(str::to_owned));
    }
    words.extend_from_slice(command);
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    Program::start(host, "container", &find("unshare")?, &words, &environment)
}
