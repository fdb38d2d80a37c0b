//! One run of the program against a server: calls of its API, and what is printed.

use std::path::Path;

use jiff::Timestamp;
use serde::Serialize as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use warren_control_api::endpoints::{ListAuthKeys, ListUsers};
use warren_control_api::{Client, Endpoint};

use super::args::OutputForm;
use super::headscale_form::{HeadscaleForm, Known};
use super::yaml::yaml;
use crate::failure::{Failure, print};
use crate::terminal::Hints;

/// The server, and the form of the output.
pub(super) struct Session {
    client: Client,
    format: Format,
    hints: Hints,
}

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// For people.
    Text,
    /// Our own JSON.
    Json,
    /// As Headscale prints it.
    Headscale(OutputForm),
}

impl Session {
    /// A session with the server of a state folder, with this form of output.
    pub(super) fn new(state_dir: &Path, format: Format) -> Self {
        Self {
            client: Client::new(state_dir),
            format,
            hints: Hints::new(state_dir),
        }
    }

    /// Whether the output is for programs.
    pub(super) fn prints_json(&self) -> bool {
        self.format != Format::Text
    }

    /// The text, with `--state-dir` in the commands that it names.
    pub(super) fn complete(&self, text: &str) -> String {
        self.hints.complete(text)
    }

    /// Prints an answer as JSON or as text.
    pub(super) fn show(&self, json: &Value, text: &str) {
        match self.format {
            Format::Text => print(self.complete(text)),
            Format::Json => print_json(&format!("{json:#}\n")),
            Format::Headscale(form) => print_json(&headscale_text(json, form)),
        }
    }

    /// Prints that something was done: a text, and what Headscale prints for programs.
    pub(super) async fn done<E: Endpoint>(
        &self,
        request: &E,
        render: impl FnOnce(&E::Answer) -> String,
        headscale: Value,
    ) -> Result<(), Failure> {
        let answer = self.call(request).await?;
        let json = match self.format {
            Format::Headscale(_) => headscale,
            Format::Text | Format::Json => serde_json::to_value(&answer)?,
        };
        self.show(&json, &render(&warren_terminal::shown(&answer)?));
        Ok(())
    }

    /// The answer as JSON, in the form of the output.
    async fn json<A: HeadscaleForm>(&self, answer: &A) -> Result<Value, Failure> {
        let Format::Headscale(_) = self.format else {
            return Ok(serde_json::to_value(answer)?);
        };
        let known = Known {
            users: self.call(&ListUsers {}).await?,
            keys: self.call(&ListAuthKeys {}).await?,
        };
        Ok(answer.headscale_form(&known))
    }

    /// Calls an endpoint.
    pub(super) async fn call<E: Endpoint>(&self, request: &E) -> Result<E::Answer, Failure> {
        let answer = self.client.call(request).await;
        answer.map_err(|error| Failure::Failed(self.complete(&error.to_string())))
    }

    /// Calls an endpoint and prints the answer, as JSON or as the text that `render`
    /// makes of it at the present moment. `render` gets each text in one line, without
    /// characters that act on a terminal.
    pub(super) async fn ask<E: Endpoint>(
        &self,
        request: &E,
        render: impl FnOnce(&E::Answer, Timestamp) -> String,
    ) -> Result<E::Answer, Failure>
    where
        E::Answer: HeadscaleForm,
    {
        let answer = self.call(request).await?;
        self.show_answer(&answer, render).await?;
        Ok(answer)
    }

    /// Prints an answer, as [`ask`](Self::ask) does.
    pub(super) async fn show_answer<A>(
        &self,
        answer: &A,
        render: impl FnOnce(&A, Timestamp) -> String,
    ) -> Result<(), Failure>
    where
        A: HeadscaleForm + DeserializeOwned,
    {
        let json = self.json(answer).await?;
        let shown = warren_terminal::shown(answer)?;
        self.show(&json, &render(&shown, Timestamp::now()));
        Ok(())
    }

    /// As [`ask`](Self::ask), where the answer contains texts of several lines.
    pub(super) async fn ask_lines<E: Endpoint>(
        &self,
        request: &E,
        render: impl FnOnce(&E::Answer) -> String,
    ) -> Result<E::Answer, Failure>
    where
        E::Answer: HeadscaleForm,
    {
        let answer = self.call(request).await?;
        let json = self.json(&answer).await?;
        self.show(&json, &render(&answer));
        Ok(answer)
    }
}

fn print_json(text: &str) {
    print(warren_terminal::escaped_json(text));
}

/// A value as Headscale prints it.
fn headscale_text(value: &Value, form: OutputForm) -> String {
    match form {
        OutputForm::Json => {
            let mut bytes = Vec::new();
            let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
            let mut out = serde_json::Serializer::with_formatter(&mut bytes, format);
            // Writing a value into memory cannot fail.
            drop(value.serialize(&mut out));
            String::from_utf8_lossy(&bytes).into_owned() + "\n"
        }
        OutputForm::JsonLine => format!("{value}\n"),
        OutputForm::Yaml => yaml(value),
    }
}
