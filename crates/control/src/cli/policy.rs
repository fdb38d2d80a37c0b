//! `warren-control policy`: checks and comparisons of files here, and calls of the
//! server.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};
use warren_control_api::endpoints::{
    ComparePolicies, ExplainPolicy, GetPolicy, ListPolicyVersions, PolicyReport, PolicyVersionInfo,
    SetPolicy, SetPolicyResult, TestPolicy, WhichPolicy,
};
use warren_control_core::{GivenPolicy, diff_of_files};

use super::args::Policy;
use super::session::Session;
use crate::failure::{Failure, print, print_error};
use crate::terminal::{relative, table};

/// Runs a `policy` command.
///
/// # Errors
/// It failed; the text says why.
pub(super) async fn run(session: &Session, command: Policy, force: bool) -> Result<(), Failure> {
    match command {
        Policy::Check { file } => check(session, &file)?,
        Policy::Diff {
            file,
            new: Some(new),
        } => compare_files(session, &file, &new)?,
        Policy::Diff { file, new: None } => {
            let old = WhichPolicy::InForce;
            let new = given(session, &file)?;
            let report = session.call(&ComparePolicies { old, new }).await?;
            show_report(session, &report);
        }
        Policy::Test { file } => {
            let policy = given_or_in_force(session, file)?;
            let tests = session.call(&TestPolicy { policy }).await?.tests;
            let text = match tests {
                0 => "the policy has no tests\n".to_owned(),
                1 => "1 test holds\n".to_owned(),
                n => format!("{n} tests hold\n"),
            };
            session.show(&json!({ "ok": true, "tests": tests }), &text);
        }
        Policy::Why {
            source,
            destination,
            protocol,
            file,
        } => {
            let request = ExplainPolicy {
                policy: given_or_in_force(session, file)?,
                source,
                destination,
                protocol,
            };
            show_report(session, &session.call(&request).await?);
        }
        Policy::Get { version } => get(session, version).await?,
        Policy::History => {
            let request = ListPolicyVersions {};
            session.ask(&request, |all, now| history(all, now)).await?;
        }
        Policy::Set {
            file,
            allow_all,
            version,
            dry_run,
            yes,
        } => {
            let policy = match (file, version) {
                (Some(file), _) => given(session, &file)?,
                (None, Some(version)) => WhichPolicy::Version(version),
                (None, None) if allow_all => WhichPolicy::Given(GivenPolicy {
                    file: "policy".to_owned(),
                    text: None,
                }),
                (None, None) => {
                    let why = "no policy to set; name a file, or --allow-all";
                    return Err(Failure::Failed(why.to_owned()));
                }
            };
            set(session, policy, dry_run, yes || force).await?;
        }
    }
    Ok(())
}

/// Reads a file as it is; "-" is the input.
fn read(session: &Session, file: &Path) -> Result<GivenPolicy, Failure> {
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
            return Err(invalid(
                session,
                &name,
                &text,
                &found.err().unwrap_or_default(),
            ));
        }
    };
    Ok(GivenPolicy {
        file: name,
        text: Some(text),
    })
}

/// Reports errors in a text locally, before a request to the server.
fn parse(session: &Session, given: &GivenPolicy) -> Result<warren_policy::Policy, Failure> {
    let text = given.text.as_deref().unwrap_or_default();
    warren_policy::Policy::parse(text).map_err(|found| invalid(session, &given.file, text, &found))
}

/// A file without errors.
fn given(session: &Session, file: &Path) -> Result<WhichPolicy, Failure> {
    let given = read(session, file)?;
    parse(session, &given)?;
    Ok(WhichPolicy::Given(given))
}

fn given_or_in_force(session: &Session, file: Option<PathBuf>) -> Result<WhichPolicy, Failure> {
    match file {
        Some(file) => given(session, &file),
        None => Ok(WhichPolicy::InForce),
    }
}

/// The failure of a file with errors. As JSON, they are also printed.
fn invalid(
    session: &Session,
    file: &str,
    text: &str,
    found: &[warren_policy::Diagnostic],
) -> Failure {
    if session.prints_json() {
        let errors: Vec<Value> = found
            .iter()
            .map(warren_policy::Diagnostic::to_json)
            .collect();
        session.show(&json!({ "ok": false, "file": file, "errors": errors }), "");
    }
    let shown: Vec<String> = found.iter().map(|one| one.render(file, text)).collect();
    let count = match found.len() {
        1 => "1 error".to_owned(),
        n => format!("{n} errors"),
    };
    Failure::Failed(format!("{file}: {count}\n{}", shown.join("\n").trim_end()))
}

fn check(session: &Session, file: &Path) -> Result<(), Failure> {
    let given = read(session, file)?;
    let policy = parse(session, &given)?;
    let tests = policy.count_tests();
    let open = policy.allows_everything().map(|why| why.to_string());
    if let Some(why) = &open {
        print_error(&format!(
            "with this policy every node may reach every node: {why}"
        ));
    }
    let text = match tests {
        0 => "the policy is good\n".to_owned(),
        n => format!(
            "the policy is good; its {n} tests need users and nodes: warren-control policy test {}\n",
            file.display()
        ),
    };
    let answer = json!({ "ok": true, "tests": tests, "allow_all_reason": open });
    session.show(&answer, &text);
    Ok(())
}

fn compare_files(session: &Session, old: &Path, new: &Path) -> Result<(), Failure> {
    let (old, new) = (read(session, old)?, read(session, new)?);
    parse(session, &old)?;
    parse(session, &new)?;
    let diff = diff_of_files(&old, &new)?;
    session.show(&diff.json(), &diff.text());
    Ok(())
}

fn show_report(session: &Session, report: &PolicyReport) {
    session.show(&report.report, &report.text);
}

async fn get(session: &Session, version: Option<i64>) -> Result<(), Failure> {
    let answer = session.call(&GetPolicy { version }).await?;
    if session.prints_json() {
        session.show(&serde_json::to_value(&answer)?, "");
        return Ok(());
    }
    if answer.policy.is_some()
        && let Some(why) = &answer.allow_all_reason
    {
        print_error(&format!("every node may reach every node: {why}"));
    }
    match answer.policy {
        // A policy is shown as it is.
        Some(text) => print(text),
        None => print(session.complete(
            "no policy: every node may reach every node\nset one: warren-control policy set FILE\n",
        )),
    }
    if version.is_none()
        && let Some(problem) = answer.problem
    {
        // Not among the text, which may go into a file.
        print_error(&format!(
            "this is the last good policy; since {} its file is not valid:\n{}",
            problem.since, problem.text
        ));
    }
    Ok(())
}

async fn set(
    session: &Session,
    policy: WhichPolicy,
    dry_run: bool,
    yes: bool,
) -> Result<(), Failure> {
    let asks =
        !session.prints_json() && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !asks || yes || dry_run {
        let request = SetPolicy {
            policy,
            dry_run,
            base: None,
        };
        let result = session.call(&request).await?;
        let text = format!("{}{}", result.text, set_result(&result));
        session.show(&set_json(&result), &text);
        return Ok(());
    }
    let try_out = SetPolicy {
        policy: policy.clone(),
        dry_run: true,
        base: None,
    };
    let tried = session.call(&try_out).await?;
    print(tried.text);
    let _ = write!(std::io::stderr(), "use this policy from now on? [y/N] ");
    let mut line = String::new();
    let _ = std::io::stdin().lock().read_line(&mut line);
    if !matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Err(Failure::Failed("nothing was changed".to_owned()));
    }
    let request = SetPolicy {
        policy,
        dry_run: false,
        // The change applies to the version that was shown.
        base: tried.before,
    };
    let result = session.call(&request).await?;
    print(session.complete(&set_result(&result)));
    Ok(())
}

/// The result of `policy set` for programs.
fn set_json(result: &SetPolicyResult) -> Value {
    json!({
        "ok": true,
        "allow_all": result.allow_all,
        "allow_all_reason": result.allow_all_reason,
        "dry_run": result.dry_run,
        "before": result.before,
        "version": result.version,
        "tests": result.tests,
        "diff": result.diff,
    })
}

/// The result of `policy set` for people.
fn set_result(result: &SetPolicyResult) -> String {
    let version = result.version.unwrap_or_default();
    match (result.dry_run, result.allow_all) {
        (true, _) => "dry run: nothing was changed\n".to_owned(),
        (false, true) => {
            format!("no policy from now on: every node may reach every node (version {version})\n")
        }
        (false, false) => {
            let back = match result.before {
                Some(before) => {
                    format!("; back with: warren-control policy set --version {before}")
                }
                None => String::new(),
            };
            let open = match &result.allow_all_reason {
                Some(why) => format!("every node may reach every node: {why}\n"),
                None => String::new(),
            };
            format!("{open}policy set: version {version}{back}\n")
        }
    }
}

fn history(versions: &[PolicyVersionInfo], now: Timestamp) -> String {
    if versions.is_empty() {
        return "no policy was set yet; set one: warren-control policy set FILE\n".to_owned();
    }
    let rows: Vec<_> = versions
        .iter()
        .rev()
        .map(|version| {
            vec![
                version.version.to_string(),
                version
                    .at
                    .map_or_else(|| "-".to_owned(), |at| relative(at, now)),
                version.by.clone(),
                match version.bytes {
                    Some(bytes) => format!("{} ({bytes} bytes)", version.file),
                    None => "no policy: allow all".to_owned(),
                },
                if version.in_force { "in force" } else { "" }.to_owned(),
            ]
        })
        .collect();
    let mut out = table(&["VERSION", "SET", "BY", "POLICY", ""], &rows);
    out.push_str("see one: warren-control policy get --version N; back to one: warren-control policy set --version N\n");
    out
}
