//! One run of the program against a server: calls of its API, and what is printed.

use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;
use warren_control_api::{Client, Endpoint};

use crate::failure::{Failure, print};
use crate::terminal::Hints;

/// The server, and the form of the output.
pub(super) struct Session {
    client: Client,
    as_json: bool,
    hints: Hints,
}

impl Session {
    /// A session with the server of a state folder. The output is JSON or text.
    pub(super) fn new(state_dir: &Path, as_json: bool) -> Self {
        Self {
            client: Client::new(state_dir),
            as_json,
            hints: Hints::new(state_dir),
        }
    }

    /// Whether the output is JSON.
    pub(super) fn prints_json(&self) -> bool {
        self.as_json
    }

    /// The text, with `--state-dir` in the commands that it names.
    pub(super) fn complete(&self, text: &str) -> String {
        self.hints.complete(text)
    }

    /// Prints an answer as JSON or as text.
    pub(super) fn show(&self, json: &Value, text: &str) {
        if self.as_json {
            print(warren_terminal::escaped_json(&format!("{json:#}\n")));
        } else {
            print(self.complete(text));
        }
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
    ) -> Result<E::Answer, Failure> {
        let answer = self.call(request).await?;
        let json = serde_json::to_value(&answer)?;
        let shown = warren_terminal::shown(&answer)?;
        self.show(&json, &render(&shown, Timestamp::now()));
        Ok(answer)
    }

    /// As [`ask`](Self::ask), where the answer contains texts of several lines.
    pub(super) async fn ask_lines<E: Endpoint>(
        &self,
        request: &E,
        render: impl FnOnce(&E::Answer) -> String,
    ) -> Result<E::Answer, Failure> {
        let answer = self.call(request).await?;
        let json = serde_json::to_value(&answer)?;
        self.show(&json, &render(&answer));
        Ok(answer)
    }
}
