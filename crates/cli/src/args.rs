//! The command line as users of the official client type it, brought into the
//! form that the parser understands.
//!
//! - `-name` and `--name` are the same;
//! - a flag with a value takes the next word, whatever it looks like;
//! - a switch takes a value only behind `=`: `--name=false`;
//! - some flags have older names.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Older names of flags.
const RENAMED: &[(&str, &str)] = &[
    ("authkey", "auth-key"),
    ("posture-checking", "report-posture"),
    ("statedir", "state-dir"),
    ("h", "help"),
];

/// A switch: `--name`, `--name=true`, `--name=false`.
pub fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_parser(parse_bool)
        .value_name("BOOL")
        .hide_possible_values(true)
        .action(ArgAction::Set)
        .help(help)
}

/// A flag with a value.
pub fn value(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value_name)
        .allow_hyphen_values(true)
        .action(ArgAction::Set)
        .help(help)
}

/// Reads a truth value in any of the spellings that Go's flags take.
fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// The arguments of one command.
#[derive(Clone, Copy)]
pub struct Given<'a>(pub &'a ArgMatches);

impl<'a> Given<'a> {
    /// The value of a flag, from the command line, the environment or a default.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.0
            .try_get_one::<String>(name)
            .ok()
            .flatten()
            .map(String::as_str)
    }

    /// The value of a switch; `None` if it was not given.
    pub fn switch(&self, name: &str) -> Option<bool> {
        self.0.try_get_one::<bool>(name).ok().flatten().copied()
    }

    /// Whether a switch was given and is true.
    pub fn is(&self, name: &str) -> bool {
        self.switch(name).unwrap_or(false)
    }

    /// The positional arguments of this name.
    pub fn all(&self, name: &str) -> Vec<&'a str> {
        self.0
            .try_get_many::<String>(name)
            .ok()
            .flatten()
            .map(|values| values.map(String::as_str).collect())
            .unwrap_or_default()
    }

    /// Whether the flag was given on the command line.
    pub fn mentioned(&self, name: &str) -> bool {
        matches!(self.0.try_contains_id(name), Ok(true))
            && self.0.value_source(name) == Some(ValueSource::CommandLine)
    }
}

/// Brings a command line (the program's name in front) into the parser's form.
pub fn normalise(args: Vec<OsString>, grammar: &Command) -> Vec<OsString> {
    if let [program, only] = args.as_slice() {
        match only.to_str() {
            Some("-V" | "-version" | "--version") => {
                return vec![program.clone(), "version".into()];
            }
            Some("help") => return vec![program.clone(), "--help".into()],
            _ => {}
        }
    }
    let mut command = grammar;
    let mut out = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    out.extend(args.next());
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else {
            out.push(arg);
            continue;
        };
        if text == "--" {
            out.push(arg);
            out.extend(args.by_ref());
            break;
        }
        let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
            let found = command.find_subcommand(text);
            let is_argument = found.is_none();
            command = found.unwrap_or(command);
            out.push(arg);
            if is_argument && passes_on(command) {
                out.extend(args.by_ref());
            }
            continue;
        };
        if flag.is_empty() || flag.starts_with('-') {
            out.push(arg);
            continue;
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        let name = RENAMED
            .iter()
            .find(|(old, new)| *old == name && (*new == "help" || knows(command, grammar, new)))
            .map_or(name, |(_, new)| *new);
        match value {
            Some(value) => out.push(format!("--{name}={value}").into()),
            None if takes_next_word(command, grammar, name) => match args.next() {
                Some(value) => {
                    let mut joined = OsString::from(format!("--{name}="));
                    joined.push(value);
                    out.push(joined);
                }
                None => out.push(format!("--{name}").into()),
            },
            None => out.push(format!("--{name}").into()),
        }
    }
    out
}

/// Whether all words behind the first argument are for another program.
fn passes_on(command: &Command) -> bool {
    let mut arguments = command.get_arguments();
    arguments.any(Arg::is_trailing_var_arg_set)
}

fn find<'a>(command: &'a Command, grammar: &'a Command, name: &str) -> Option<&'a Arg> {
    command
        .get_arguments()
        .chain(grammar.get_arguments())
        .find(|arg| arg.get_long() == Some(name))
}

fn knows(command: &Command, grammar: &Command, name: &str) -> bool {
    find(command, grammar, name).is_some()
}

fn takes_next_word(command: &Command, grammar: &Command, name: &str) -> bool {
    find(command, grammar, name).is_some_and(|arg| {
        matches!(arg.get_action(), ArgAction::Set) && !arg.is_require_equals_set()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::grammar;

    fn normal(line: &str) -> String {
        let args = line.split(' ').map(OsString::from).collect();
        let out: Vec<_> = normalise(args, &grammar::command())
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect();
        out.join(" ")
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let table = [
            (
                "w -socket /x up -auth-key k -accept-routes",
                "w --socket=/x up --auth-key=k --accept-routes",
            ),
            (
                "w up -accept-dns=false --hostname=a",
                "w up --accept-dns=false --hostname=a",
            ),
            ("w up --authkey k", "w up --auth-key=k"),
            ("w up -authkey=k=k", "w up --auth-key=k=k"),
            ("w up --hostname -x --reset", "w up --hostname=-x --reset"),
            ("w ping -c 3 db", "w ping --c=3 db"),
            ("w ip -4 db", "w ip --4 db"),
            ("w -V", "w version"),
            ("w --version", "w version"),
            ("w help", "w --help"),
            ("w up -h", "w up --help"),
            ("w whois -- -x --y", "w whois -- -x --y"),
            (
                "w daemon -statedir /s -port 41641",
                "w daemon --state-dir=/s --port=41641",
            ),
            ("w up --nonsense x", "w up --nonsense x"),
            (
                "w -socket /x ssh db -v -L 1:b:2 ls -l",
                "w --socket=/x ssh db -v -L 1:b:2 ls -l",
            ),
        ];
        for (line, expected) in table {
            assert_eq!(normal(line), expected, "{line}");
        }
    }

    #[test]
    fn a_normal_line_stays_as_it_is() {
        for line in [
            "w up --auth-key=k --accept-dns=false",
            "w status --json --peers=false",
            "w",
        ] {
            assert_eq!(normal(line), line);
            assert_eq!(normal(&normal(line)), line);
        }
    }

    fn parse(line: &str) -> Result<ArgMatches, clap::Error> {
        let args = line.split(' ').map(OsString::from).collect();
        let grammar = grammar::command();
        let args = normalise(args, &grammar);
        grammar.try_get_matches_from(args)
    }

    #[test]
    fn switches_take_go_truth_values_and_nothing_twice() {
        for (line, expected) in [
            ("w up --accept-dns", Some(true)),
            ("w up -accept-dns=0", Some(false)),
            ("w up --accept-dns=T", Some(true)),
            ("w up", None),
        ] {
            let matches = parse(line).unwrap();
            let (_, up) = matches.subcommand().unwrap();
            assert_eq!(Given(up).switch("accept-dns"), expected, "{line}");
            assert_eq!(
                Given(up).mentioned("accept-dns"),
                expected.is_some(),
                "{line}"
            );
        }
        for wrong in [
            "w up --accept-dns=maybe",
            "w up --accept-dns --accept-dns=false",
            "w up --hostname a --hostname b",
            "w nonsense",
            "w up --nonsense",
            "w up extra",
            "w",
            "w up --hostname",
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.use_stderr() || wrong == "w", "{wrong}");
        }
    }

    #[test]
    fn the_grammar_is_sound() {
        grammar::command().debug_assert();
    }
}
