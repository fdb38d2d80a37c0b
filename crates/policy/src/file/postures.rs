//! Reads postures (conditions on source hosts) and the rules' references to
//! them.

use super::{Fields, Reader, is_empty};
use crate::json::{Spanned, Value};
use crate::posture::{Assertion, AttributeValue, Attributes, Number};

impl Reader<'_> {
    /// Reads the `postures` section.
    pub(super) fn postures(&mut self, value: &Spanned) {
        for member in self.members(value, "postures") {
            let name = member.name.trim();
            if name.strip_prefix("posture:").is_none_or(str::is_empty) {
                let message = format!("posture name {name:?} must start with \"posture:\"");
                self.problem(&member.name_span, message);
                continue;
            }
            let mut assertions = Vec::new();
            if is_empty(&member.value) {
                let message = format!("{name} has no assertions, so every device would have it");
                let help = "write at least one, such as \"node:os == 'linux'\"".to_owned();
                self.problem_with(&member.name_span, message, Some(help));
                continue;
            }
            for text in self.texts(Some(&member.value).filter(|v| !v.is_null()), name) {
                match Assertion::parse(text.text) {
                    Ok(assertion) => assertions.push(assertion),
                    Err(problem) => {
                        let message = format!(
                            "{name}: {:?}: {} (at character {})",
                            text.text,
                            problem.message,
                            text.text
                                .get(..problem.at)
                                .map_or(0, |before| before.chars().count())
                                + 1
                        );
                        self.problem_with(&text.span, message, problem.help);
                    }
                }
            }
            self.policy.postures.insert(name.to_owned(), assertions);
        }
    }

    /// Reads a list of posture names.
    pub(super) fn posture_names(&mut self, value: Option<&Spanned>) -> Vec<String> {
        let mut out = Vec::new();
        for text in self.texts(value, "postures") {
            let name = text.text;
            if self.policy.postures.contains_key(name) {
                out.push(name.to_owned());
                continue;
            }
            let help = self
                .suggest(name, self.policy.postures.keys().map(String::as_str))
                .or_else(|| Some(format!("define {name:?} in \"postures\"")));
            self.problem_with(&text.span, format!("posture not found: {name:?}"), help);
        }
        out
    }

    /// The postures of a rule: its own, else the default of the file.
    pub(super) fn rule_postures(&mut self, fields: &Fields<'_>) -> Vec<String> {
        match fields.get("srcPosture") {
            Some(own) => self.posture_names(Some(own)),
            None => self.default_posture.clone(),
        }
    }

    /// Reads `srcPostureAttrs` of a test: the attributes that its source is
    /// assumed to have.
    pub(super) fn posed_attributes(&mut self, fields: &Fields<'_>) -> Attributes {
        let mut out = Attributes::default();
        let Some(value) = fields.get("srcPostureAttrs") else {
            return out;
        };
        for member in self.members(value, "srcPostureAttrs") {
            let posed = match &member.value.value {
                Value::String(text) => Some(AttributeValue::Text(text.clone())),
                Value::Bool(value) => Some(AttributeValue::Bool(*value)),
                Value::Number(text) => text
                    .parse()
                    .ok()
                    .and_then(Number::new)
                    .map(AttributeValue::Number),
                _ => None,
            };
            match posed {
                Some(posed) => {
                    out.0.insert(member.name.trim().to_owned(), posed);
                }
                None => self.expected(&member.value, "text, a number, true or false"),
            }
        }
        out
    }
}
