//! The near side of a load generator: starts it on a host, asks it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use warren_lab::Namespace;
use warren_lab::{Host, LabError};

/// A running generator; it ends when this is dropped.
pub struct Load {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    errors: std::path::PathBuf,
    port: u16,
}

impl Load {
    /// Starts `warren-lab load …` on `host` and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start; the text holds its last words.
    pub fn start(host: &Host, arguments: &[String]) -> Result<Self, LabError> {
        let name = arguments.first().map_or("load", String::as_str);
        let errors = host.folder().join(format!("{name}.log"));
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("load")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?);
        Namespace::tie(&mut command);
        let mut child = host.inside(move || command.spawn())?;
        let (questions, answers) = child
            .stdin
            .take()
            .zip(child.stdout.take())
            .ok_or_else(|| LabError::new("a load generator without pipes"))?;
        let mut load = Self {
            child,
            questions,
            answers: BufReader::new(answers),
            errors,
            port: 0,
        };
        let line = load.line()?;
        let port = line.strip_prefix("ready ").map(str::trim);
        load.port = port
            .and_then(|port| port.parse().ok())
            .ok_or_else(|| LabError::new(format!("a load generator said `{line}`")))?;
        Ok(load)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Asks for its next answer, and waits for it.
    ///
    /// # Errors
    /// When it has ended; the text holds its last words.
    pub fn ask(&mut self) -> Result<Value, LabError> {
        self.question()?;
        self.answer()
    }

    /// Asks with words of its own, and waits for the answer.
    ///
    /// # Errors
    /// As [`Load::ask`].
    pub fn ask_for(&mut self, words: &str) -> Result<Value, LabError> {
        let line = format!("{words}\n");
        let written = self.questions.write_all(line.as_bytes());
        written.map_err(|_| self.last_words())?;
        self.answer()
    }

    /// Asks, without waiting: it works while others are asked.
    ///
    /// # Errors
    /// When it has ended.
    pub fn question(&mut self) -> Result<(), LabError> {
        let written = self.questions.write_all(b"?\n");
        written.map_err(|_| self.last_words())
    }

    /// Waits for the answer to [`Load::question`].
    ///
    /// # Errors
    /// As [`Load::ask`].
    pub fn answer(&mut self) -> Result<Value, LabError> {
        let line = self.line()?;
        serde_json::from_str(&line)
            .map_err(|error| LabError::new(format!("a load generator said `{line}`: {error}")))
    }

    fn line(&mut self) -> Result<String, LabError> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(1..) => Ok(line),
            _ => Err(self.last_words()),
        }
    }

    fn last_words(&mut self) -> LabError {
        let words = std::fs::read_to_string(&self.errors).unwrap_or_default();
        // Its pipes are closed, so it has ended or is about to.
        let status = self.child.wait();
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        LabError::new(format!(
            "the load generator ended, {status}: {}",
            words.trim()
        ))
    }
}

/// A number of an answer.
///
/// # Errors
/// When there is none of that name.
pub fn number(value: &Value, key: &str) -> Result<f64, LabError> {
    value[key]
        .as_f64()
        .ok_or_else(|| LabError::new(format!("no number `{key}` in {value}")))
}

impl Drop for Load {
    fn drop(&mut self) {
        // Already gone is fine.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
