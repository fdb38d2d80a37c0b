//! Reads keys one after the other, and keeps everything that is wrong.
//!
//! A key may be given in the file, in the environment and as a flag; the later one of
//! these wins, and a mistake in an earlier one is reported all the same. The keys that
//! were asked for are the known ones: what is left of a section is unknown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::given::{self, Given, Table, Value, Wrong};
use super::shown::{Shown, quoted};
use super::suggest::closest;

/// The beginning of the names of environment variables.
pub(super) const VARIABLES: &str = "WARREN_CONTROL_";
/// Variables that are no keys.
const RESERVED: [&str; 2] = ["WARREN_CONTROL_STATE_DIR", "WARREN_CONTROL_CONFIG"];

/// Something wrong in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Where it is.
    pub place: Origin,
    /// The error, and the text to write instead.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of the file; 0 is the file as a whole.
    File(PathBuf, usize),
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(String),
    /// It was not given.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, 0) => write!(f, "{}", path.display()),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Whether a new value takes effect without a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// When the configuration is read again.
    Reload,
    /// When the server starts.
    Restart,
}

/// A key and its value.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The section in the file.
    pub section: String,
    /// The name in the section.
    pub name: &'static str,
    /// The value as TOML, or, where it was not given, a description of the default.
    pub text: String,
    /// Where it was given.
    pub origin: Origin,
    /// The text that is shown instead of a secret value.
    pub hidden: Option<String>,
    /// When a new value is used.
    pub takes: Takes,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The value may be a secret.
        f.debug_struct("Entry")
            .field("section", &self.section)
            .field("name", &self.name)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// A key, before it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// The flag that is the same setting.
    pub(super) flag: Option<&'static str>,
    /// The default, for people.
    pub(super) default: &'static str,
    pub(super) secret: bool,
    pub(super) takes: Takes,
}

impl Key {
    pub(super) const fn new(name: &'static str, default: &'static str) -> Self {
        Self {
            name,
            flag: None,
            default,
            secret: false,
            takes: Takes::Restart,
        }
    }

    pub(super) const fn flag(self, flag: &'static str) -> Self {
        Self {
            flag: Some(flag),
            ..self
        }
    }

    pub(super) const fn secret(self) -> Self {
        Self {
            secret: true,
            ..self
        }
    }

    pub(super) const fn live(self) -> Self {
        Self {
            takes: Takes::Reload,
            ..self
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reader {
    file: PathBuf,
    root: Table,
    variables: BTreeMap<String, String>,
    sections: Vec<&'static str>,
    known_variables: Vec<String>,
    mistakes: Vec<Mistake>,
    entries: Vec<Entry>,
}

impl Reader {
    /// Reads the text of a file, and these environment variables.
    pub(super) fn new(file: &Path, text: &str, variables: &BTreeMap<String, String>) -> Self {
        let (root, wrong) = given::parse(text);
        let ours = variables
            .iter()
            .filter(|(name, _)| name.starts_with(VARIABLES) && !RESERVED.contains(&name.as_str()));
        let mut this = Self {
            file: file.to_owned(),
            root,
            variables: ours.map(|(a, b)| (a.clone(), b.clone())).collect(),
            sections: Vec::new(),
            known_variables: RESERVED.map(str::to_owned).to_vec(),
            mistakes: Vec::new(),
            entries: Vec::new(),
        };
        for (line, what) in wrong {
            this.wrong(line, what);
        }
        this
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Something is wrong with a line of the file.
    pub(super) fn wrong(&mut self, line: usize, what: impl Into<String>) {
        self.mistakes.push(Mistake {
            place: Origin::File(self.file.clone(), line),
            what: what.into(),
        });
    }

    /// Something is wrong at another place.
    pub(super) fn mistake(&mut self, place: Origin, what: impl Into<String>) {
        self.mistakes.push(Mistake {
            place,
            what: what.into(),
        });
    }

    /// The section `[name]`, whether it is there or not.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'_> {
        self.sections.push(name);
        let table = match self.root.remove(name) {
            None => Table::new(),
            Some(given) => match given.value {
                Value::Table(table) => table,
                _ => {
                    self.wrong(given.line, format!("{name} is a section: write [{name}]"));
                    Table::new()
                }
            },
        };
        Section {
            reader: self,
            label: format!("[{name}]"),
            variables: Some(name),
            line: 0,
            table,
            asked: Vec::new(),
        }
    }

    /// The sections `[[name]]`, in their order.
    pub(super) fn sections(&mut self, name: &'static str) -> Vec<(usize, Table)> {
        self.sections.push(name);
        let Some(given) = self.root.remove(name) else {
            return Vec::new();
        };
        let Value::List(elements) = given.value else {
            self.wrong(
                given.line,
                format!("there may be several: write [[{name}]]"),
            );
            return Vec::new();
        };
        let mut found = Vec::new();
        for element in elements {
            match element.value {
                Value::Table(table) => found.push((element.line, table)),
                _ => self.wrong(element.line, format!("write a section [[{name}]]")),
            }
        }
        found
    }

    /// One of the sections `[[name]]`. It has no environment variables.
    pub(super) fn one_of(&mut self, label: String, line: usize, table: Table) -> Section<'_> {
        Section {
            reader: self,
            label,
            variables: None,
            line,
            table,
            asked: Vec::new(),
        }
    }

    /// The keys and their values, unless something is wrong.
    pub(super) fn finish(mut self) -> Result<Vec<Entry>, Vec<Mistake>> {
        for (name, given) in std::mem::take(&mut self.root) {
            let known = closest(&name, self.sections.iter().copied());
            let what = format!("{name} is not a section{}", did_you_mean(known));
            self.wrong(given.line, what);
        }
        for name in std::mem::take(&mut self.variables).into_keys() {
            let known = closest(&name, self.known_variables.iter().map(String::as_str));
            let what = format!("no setting has this variable{}", did_you_mean(known));
            self.mistake(Origin::Variable(name), what);
        }
        if self.mistakes.is_empty() {
            return Ok(self.entries);
        }
        self.mistakes.sort();
        Err(self.mistakes)
    }
}

fn did_you_mean(known: Option<&str>) -> String {
    match known {
        Some(known) => format!("; did you mean \"{known}\"?"),
        None => String::new(),
    }
}

/// A section whose keys are read.
#[derive(Debug)]
pub(super) struct Section<'r> {
    reader: &'r mut Reader,
    label: String,
    /// The name in environment variables; `None`: it has none.
    variables: Option<&'static str>,
    /// The line of the section; 0 where that is not known.
    line: usize,
    table: Table,
    asked: Vec<&'static str>,
}

impl Section<'_> {
    /// Reads a key. `flag` is the value of its flag, if that was given.
    pub(super) fn value<T: Shown>(
        &mut self,
        key: Key,
        flag: Option<T>,
        read: impl Fn(&Given) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.asked.push(key.name);
        let mut chosen = None;
        if let Some(given) = self.table.remove(key.name) {
            let file = self.reader.file.clone();
            let place = |line| Origin::File(file.clone(), line);
            match read(&given) {
                Ok(value) => chosen = Some((place(given.line), value)),
                Err(wrong) => self.wrong_value(key.name, wrong, place),
            }
        }
        if let Some(section) = self.variables {
            let name = format!("{VARIABLES}{section}_{}", key.name).to_uppercase();
            if let Some(text) = self.reader.variables.remove(&name) {
                match read(&Given::variable(&text)) {
                    Ok(value) => chosen = Some((Origin::Variable(name.clone()), value)),
                    Err(wrong) => {
                        self.wrong_value(key.name, wrong, |_| Origin::Variable(name.clone()));
                    }
                }
            }
            self.reader.known_variables.push(name);
        }
        if let Some(value) = flag {
            chosen = Some((Origin::Flag(key.flag.unwrap_or(key.name).to_owned()), value));
        }
        let (text, origin, hidden) = match &chosen {
            None => (key.default.to_owned(), Origin::Default, None),
            Some((origin, value)) => {
                let hidden = key.secret.then(|| value.hidden());
                (value.shown(), origin.clone(), hidden)
            }
        };
        self.reader.entries.push(Entry {
            section: self.label.clone(),
            name: key.name,
            text,
            origin,
            hidden,
            takes: key.takes,
        });
        chosen.map(|(_, value)| value)
    }

    /// A key that has no flag.
    pub(super) fn key<T: Shown>(
        &mut self,
        key: Key,
        read: impl Fn(&Given) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.value(key, None, read)
    }

    fn wrong_value(&mut self, name: &str, wrong: Wrong, place: impl Fn(usize) -> Origin) {
        let mistakes: Vec<_> = wrong
            .into_iter()
            .map(|(line, what)| (place(line), format!("{} {name}: {what}", self.label)))
            .collect();
        for (place, what) in mistakes {
            self.reader.mistake(place, what);
        }
    }

    /// Something is wrong with the section as a whole.
    pub(super) fn wrong(&mut self, what: &str) {
        let what = format!("{}: {what}", self.label);
        self.reader.wrong(self.line, what);
    }

    /// The file that is read.
    pub(super) fn file(&self) -> &Path {
        self.reader.file()
    }

    /// Reports the keys that nothing asked for.
    pub(super) fn finish(mut self) {
        for (name, given) in std::mem::take(&mut self.table) {
            let known = closest(&name, self.asked.iter().copied());
            let what = format!(
                "{} has no key {}{}",
                self.label,
                quoted(&name),
                did_you_mean(known)
            );
            self.reader.wrong(given.line, what);
        }
    }
}
