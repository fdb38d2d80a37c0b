//! Values as they were given: from TOML with their lines, or from the environment.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

/// A value, and where it was given.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Given {
    pub(super) value: Value,
    /// The line of its key in the file, from 1; of an element of a list its own.
    pub(super) line: usize,
}

/// A value before it is known what it should be.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    /// The text of an environment variable, which stands for any kind of value.
    Variable(String),
    Boolean(bool),
    /// As written: it may not fit into a number.
    Integer(String),
    List(Vec<Given>),
    Table(Table),
    /// A number with a fraction, or a date: no setting is one.
    Other(&'static str),
}

/// A table by its keys.
pub(super) type Table = BTreeMap<String, Given>;

/// The errors of a value, each with its line in the file.
pub(super) type Wrong = Vec<(usize, String)>;

/// Parses TOML. The table has everything that could be read beside the errors.
pub(super) fn parse(text: &str) -> (Table, Wrong) {
    let lines = Lines::of(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    let errors = errors.iter().map(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (lines.at(at), error.message().to_owned())
    });
    (table(root.get_ref(), &lines), errors.collect())
}

fn table(from: &DeTable<'_>, lines: &Lines) -> Table {
    let members = from.iter().map(|(key, value)| {
        let given = Given {
            value: converted(value.get_ref(), lines),
            line: lines.at(key.span().start),
        };
        (key.get_ref().to_string(), given)
    });
    members.collect()
}

fn converted(from: &DeValue<'_>, lines: &Lines) -> Value {
    match from {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Integer(number) if number.radix() == 10 => {
            Value::Integer(number.as_str().to_owned())
        }
        DeValue::Integer(_) => Value::Other("a number that is not decimal"),
        DeValue::Float(_) => Value::Other("a number with a fraction"),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(elements) => Value::List(
            elements
                .iter()
                .map(|element| Given {
                    value: converted(element.get_ref(), lines),
                    line: lines.at(element.span().start),
                })
                .collect(),
        ),
        DeValue::Table(inner) => Value::Table(table(inner, lines)),
    }
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Self(std::iter::once(0).chain(ends).collect())
    }

    /// The line of a byte, from 1.
    fn at(&self, byte: usize) -> usize {
        self.0.partition_point(|start| *start <= byte)
    }
}

impl Given {
    /// The value of an environment variable.
    pub(super) fn variable(text: &str) -> Self {
        Self {
            value: Value::Variable(text.to_owned()),
            line: 0,
        }
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Result<T, Wrong> {
        Err(vec![(self.line, what.into())])
    }

    fn kind(&self) -> &'static str {
        match &self.value {
            Value::Text(_) | Value::Variable(_) => "a text",
            Value::Boolean(_) => "true or false",
            Value::Integer(_) => "a number",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other(kind) => kind,
        }
    }

    fn expected<T>(&self, what: &str) -> Result<T, Wrong> {
        self.wrong(format!("{} where {what} is expected", self.kind()))
    }

    /// A text, read by `parse`.
    pub(super) fn text<T>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Wrong> {
        match &self.value {
            Value::Text(text) | Value::Variable(text) => parse(text).or_else(|why| self.wrong(why)),
            _ => self.expected("a text in quotes"),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Result<bool, Wrong> {
        match &self.value {
            Value::Boolean(value) => Ok(*value),
            Value::Variable(text) if text == "true" => Ok(true),
            Value::Variable(text) if text == "false" => Ok(false),
            _ => self.expected("true or false"),
        }
    }

    /// A number from `least` to `most`.
    pub(super) fn number(&self, least: usize, most: usize) -> Result<usize, Wrong> {
        let (Value::Integer(digits) | Value::Variable(digits)) = &self.value else {
            return self.expected("a number");
        };
        match digits.replace('_', "").parse::<usize>() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => self.wrong(format!("expected a number from {least} to {most}")),
        }
    }

    /// A list, whose elements `read` reads. In a variable they are separated by commas.
    pub(super) fn list<T>(
        &self,
        mut read: impl FnMut(&Given) -> Result<T, Wrong>,
    ) -> Result<Vec<T>, Wrong> {
        let split;
        let elements = match &self.value {
            Value::List(elements) => elements,
            Value::Variable(text) => {
                let words = text
                    .split(',')
                    .map(str::trim)
                    .filter(|word| !word.is_empty());
                split = words.map(Given::variable).collect();
                &split
            }
            _ => return self.expected("a list in brackets"),
        };
        all(elements.iter().map(&mut read))
    }

    /// A table, whose values `read` reads. In a variable it is written as in TOML.
    pub(super) fn map<T>(
        &self,
        mut read: impl FnMut(&str, &Given) -> Result<T, Wrong>,
    ) -> Result<BTreeMap<String, T>, Wrong> {
        let parsed;
        let members = match &self.value {
            Value::Table(members) => members,
            Value::Variable(text) => match DeValue::parse(text) {
                Ok(value) => match converted(value.get_ref(), &Lines::of(text)) {
                    Value::Table(members) => {
                        parsed = members;
                        &parsed
                    }
                    _ => return self.expected("a table such as { a = \"b\" }"),
                },
                Err(error) => return self.wrong(error.message()),
            },
            _ => return self.expected("a table"),
        };
        let read = members
            .iter()
            .map(|(name, value)| Ok((name.clone(), read(name, value)?)));
        Ok(all(read)?.into_iter().collect())
    }
}

/// All values, or everything that is wrong with any of them.
fn all<T>(results: impl Iterator<Item = Result<T, Wrong>>) -> Result<Vec<T>, Wrong> {
    let mut values = Vec::new();
    let mut wrong = Vec::new();
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(more) => wrong.extend(more),
        }
    }
    if wrong.is_empty() {
        Ok(values)
    } else {
        Err(wrong)
    }
}
