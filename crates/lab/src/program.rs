//! Programs on hosts: started in the background, their output kept in a file,
//! stopped when dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::namespace::Namespace;
use crate::network::{Host, LabError, which};

/// Where programs that other people wrote are looked for, before `PATH`.
pub const PEERS_VARIABLE: &str = "WARREN_PEERS";
/// Where our own binaries are looked for, before the lab's own folder.
pub const BINARIES_VARIABLE: &str = "WARREN_BIN";

/// A program running on a host.
pub struct Program {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Program {
    /// Starts `binary` on `host`; what it prints goes to `NAME.log` in the
    /// host's folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        host: &Host,
        name: &str,
        binary: &Path,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> Result<Self, LabError> {
        Self::start_in(host.namespace(), host, name, binary, arguments, environment)
    }

    /// Starts `binary` in the router next to `host`; what it prints goes to `NAME.log` in the
    /// host's folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start_in_router(
        host: &Host,
        name: &str,
        binary: &Path,
        arguments: &[String],
    ) -> Result<Self, LabError> {
        Self::start_in(host.router()?, host, name, binary, arguments, &[])
    }

    fn start_in(
        namespace: &Namespace,
        host: &Host,
        name: &str,
        binary: &Path,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> Result<Self, LabError> {
        let log = host.folder().join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let errors = output.try_clone()?;
        let mut command = Command::new(binary);
        command
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(host.folder())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        Namespace::tie(&mut command);
        let shown = format!("{} on {}", binary.display(), host.name());
        let child = namespace.inside(move || command.spawn());
        let child =
            child.map_err(|error| LabError::new(format!("cannot start {shown}: {error}")))?;
        Ok(Self {
            child,
            name: name.to_owned(),
            log,
        })
    }

    /// The output of the program so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error, with the end of the log, if the program has ended.
    ///
    /// # Errors
    /// The error is the answer.
    pub fn check_alive(&mut self) -> Result<(), LabError> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(LabError::new(format!(
                "{} ended ({status}); its last words:\n{}",
                self.name,
                last_lines(&self.log(), 15)
            ))),
        }
    }

    /// Asks the program to stop, and waits until it has.
    ///
    /// # Errors
    /// When it has to be killed, which is a defect of the program.
    pub fn stop(&mut self) -> Result<(), LabError> {
        self.signal(rustix::process::Signal::TERM)?;
        let ended = crate::wait::until("the program to stop", crate::wait::PATIENCE, || match self
            .child
            .try_wait()
        {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        ended
            .map(drop)
            .map_err(|error| LabError::new(format!("{}: {error}", self.name)))
    }

    /// Ends the program as a power failure would.
    ///
    /// # Errors
    /// When the kernel refuses, which it does not.
    pub fn kill(&mut self) -> Result<(), LabError> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<(), LabError> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or_else(|| LabError::new("the process id is out of range"))?;
        rustix::process::kill_process(pid, signal)
            .map_err(|errno| LabError::new(format!("cannot signal {}: {errno}", self.name)))
    }

    /// Resident memory in bytes, from `/proc`.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn resident_bytes(&self) -> Result<u64, LabError> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024)
            .ok_or_else(|| LabError::new(format!("{} has ended", self.name)))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already gone is fine.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// One of our own binaries.
///
/// # Errors
/// Says where it was looked for.
pub fn ours(name: &str) -> Result<PathBuf, LabError> {
    let mut folders = Vec::new();
    folders.extend(std::env::var_os(BINARIES_VARIABLE).map(PathBuf::from));
    if let Some(folder) = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.to_owned()))
    {
        // A test runs in `deps`, beside which the binaries lie.
        folders.extend(folder.parent().map(Path::to_owned));
        folders.insert(folders.len() - 1, folder);
    }
    let found = folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    found.ok_or_else(|| {
        LabError::new(format!(
            "the binary {name} is not built: `cargo build --profile lab --workspace --bins`, or \
             set {BINARIES_VARIABLE} to the folder that holds it (looked in {folders:?})"
        ))
    })
}

/// An official program, or `None` where it is not installed.
pub fn foreign(name: &str) -> Option<PathBuf> {
    let given = std::env::var_os(PEERS_VARIABLE).map(|folder| PathBuf::from(folder).join(name));
    given.filter(|file| file.is_file()).or_else(|| which(name))
}

/// The last `count` lines of a log.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
