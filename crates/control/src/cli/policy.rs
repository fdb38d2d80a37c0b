//! `warren-control policy`: what is done here, and what the server is asked.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};
use warren_control_core::{GivenPolicy, diff_of_files};

use crate::admin::{self, Command, WhichPolicy};
use crate::args::Policy;
use crate::failure::{Failure, print};
use crate::output::{self, Hints};

/// Runs a `policy` command.
///
/// # Errors
/// It failed; the text says why.
pub async fn run(state_dir: &Path, as_json: bool, command: Policy) -> Result<(), Failure> {
    let session = Session {
        state_dir,
        as_json,
        hints: Hints::new(state_dir),
    };
    match command {
        Policy::Check { file } => {
            let given = session.read(&file)?;
            let tests = session.parse(&given)?.count_tests();
            let text = match tests {
                0 => "the policy is good\n".to_owned(),
                n => {
                    let run = session
                        .hints
                        .complete(&format!("warren-control policy test {}", file.display()));
                    format!("the policy is good; its {n} tests need users and nodes: {run}\n")
                }
            };
            session.show(&json!({ "ok": true, "tests": tests }), &text);
        }
        Policy::Diff {
            file,
            new: Some(new),
        } => {
            let (old, new) = (session.read(&file)?, session.read(&new)?);
            session.parse(&old)?;
            session.parse(&new)?;
            let diff = diff_of_files(&old, &new)?;
            session.show(&diff.json(), &diff.text());
        }
        Policy::Diff { file, new: None } => {
            let new = session.given(&file)?;
            let old = WhichPolicy::InForce;
            session.ask(Command::PolicyDiff { old, new }).await?;
        }
        Policy::Test { file } => {
            let policy = match file {
                Some(file) => session.given(&file)?,
                None => WhichPolicy::InForce,
            };
            session.ask(Command::PolicyTest { policy }).await?;
        }
        Policy::Why {
            source,
            destination,
            protocol,
            file,
        } => {
            let policy = match file {
                Some(file) => session.given(&file)?,
                None => WhichPolicy::InForce,
            };
            let command = Command::PolicyWhy {
                policy,
                source,
                destination,
                protocol,
            };
            session.ask(command).await?;
        }
        Policy::Get { version } => {
            let answer = session.put(&Command::PolicyGet { version }).await?;
            if as_json {
                session.show(&answer, "");
                return Ok(());
            }
            match answer["policy"].as_str() {
                // A policy is shown as it is.
                Some(text) => print(text.to_owned()),
                None => print(session.hints.complete(
                    "no policy: every node may reach every node\nset one: warren-control policy set FILE\n",
                )),
            }
            if version.is_none()
                && let Some(problem) = answer["problem"]["text"].as_str()
            {
                // Not among the text, which may go into a file.
                let since = answer["problem"]["since"].as_str().unwrap_or_default();
                eprintln!(
                    "warren-control: this is the last good policy; since {since} its file is no good:\n{problem}"
                );
            }
        }
        Policy::History => session.ask(Command::PolicyHistory).await?,
        Policy::Set {
            file,
            version,
            dry_run,
            yes,
            ..
        } => {
            let policy = match (file, version) {
                (Some(file), _) => session.given(&file)?,
                (None, Some(version)) => WhichPolicy::Version(version),
                (None, None) => WhichPolicy::Given(GivenPolicy {
                    file: "policy".to_owned(),
                    text: None,
                }),
            };
            session.set(policy, dry_run, yes).await?;
        }
    }
    Ok(())
}

struct Session<'a> {
    state_dir: &'a Path,
    as_json: bool,
    hints: Hints,
}

impl Session<'_> {
    /// Reads a file as it is; "-" is the input.
    fn read(&self, file: &Path) -> Result<GivenPolicy, Failure> {
        let name = match file.to_str() {
            Some("-") => "<stdin>".to_owned(),
            _ => file.display().to_string(),
        };
        let mut bytes = Vec::new();
        let read = if name == "<stdin>" {
            std::io::stdin().read_to_end(&mut bytes).map(drop)
        } else {
            std::fs::read(file).map(|read| bytes = read)
        };
        read.map_err(|error| Failure::Failed(format!("cannot read {name}: {error}")))?;
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let context = warren_policy::Context::default();
                let found = warren_policy::Policy::parse_bytes(error.as_bytes(), &context);
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                return Err(self.wrong(&name, &text, &found.err().unwrap_or_default()));
            }
        };
        Ok(GivenPolicy {
            file: name,
            text: Some(text),
        })
    }

    /// Reports errors in a text locally, before a request to the server.
    fn parse(&self, given: &GivenPolicy) -> Result<warren_policy::Policy, Failure> {
        let text = given.text.as_deref().unwrap_or_default();
        warren_policy::Policy::parse(text).map_err(|found| self.wrong(&given.file, text, &found))
    }

    fn given(&self, file: &Path) -> Result<WhichPolicy, Failure> {
        let given = self.read(file)?;
        self.parse(&given)?;
        Ok(WhichPolicy::Given(given))
    }

    fn wrong(&self, file: &str, text: &str, found: &[warren_policy::Diagnostic]) -> Failure {
        if self.as_json {
            let errors: Vec<Value> = found
                .iter()
                .map(warren_policy::Diagnostic::to_json)
                .collect();
            self.show(&json!({ "ok": false, "file": file, "errors": errors }), "");
        }
        let shown: Vec<String> = found.iter().map(|one| one.render(file, text)).collect();
        let count = match found.len() {
            1 => "1 error".to_owned(),
            n => format!("{n} errors"),
        };
        Failure::Failed(format!("{file}: {count}\n{}", shown.join("\n").trim_end()))
    }

    fn show(&self, answer: &Value, text: &str) {
        if self.as_json {
            print(format!("{answer:#}\n"));
        } else {
            print(text.to_owned());
        }
    }

    async fn put(&self, command: &Command) -> Result<Value, Failure> {
        let answer = admin::ask(self.state_dir, command).await;
        answer.map_err(|error| Failure::Failed(self.hints.complete(&error.to_string())))
    }

    /// Puts a command and shows the answer.
    async fn ask(&self, command: Command) -> Result<(), Failure> {
        let mut answer = self.put(&command).await?;
        let text = output::render(&command, &answer, jiff::Timestamp::now())?;
        // The text for people is no part of the answer for programs.
        if let Some(members) = answer.as_object_mut() {
            members.remove("text");
        }
        self.show(&answer, &self.hints.complete(&text));
        Ok(())
    }

    async fn set(&self, policy: WhichPolicy, dry_run: bool, yes: bool) -> Result<(), Failure> {
        let asks =
            !self.as_json && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        let mut base = None;
        if asks && !yes && !dry_run {
            let command = Command::PolicySet {
                policy: policy.clone(),
                dry_run: true,
                base,
            };
            let answer = self.put(&command).await?;
            print(answer["text"].as_str().unwrap_or_default().to_owned());
            let _ = write!(std::io::stderr(), "use this policy from now on? [y/N] ");
            let mut line = String::new();
            let _ = std::io::stdin().lock().read_line(&mut line);
            if !matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
                return Err(Failure::Failed("nothing was changed".to_owned()));
            }
            // The change applies to the version that was shown.
            base = answer["before"].as_i64();
            let command = Command::PolicySet {
                policy,
                dry_run: false,
                base,
            };
            let answer = self.put(&command).await?;
            print(self.hints.complete(&output::policy_set(&answer)));
            return Ok(());
        }
        let command = Command::PolicySet {
            policy,
            dry_run,
            base,
        };
        self.ask(command).await
    }
}
