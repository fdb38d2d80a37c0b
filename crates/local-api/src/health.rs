//! The health of a node, in the form that programs for the official client read.
//!
//! Their form is an object by code, with a severity and a title for each problem. A
//! list of texts in its place would make them refuse the whole notification.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::go_json::nullable;

/// All problems of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HealthState {
    /// The problems by their code; none: all is well.
    #[serde(with = "nullable")]
    pub warnings: BTreeMap<String, Warning>,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Warning {
    /// The code, the same one as long as the text is the same.
    pub warnable_code: String,
    /// `low`, `medium` or `high`.
    pub severity: String,
    /// A few words.
    pub title: String,
    /// The whole sentence.
    pub text: String,
}

impl HealthState {
    /// The state for these problems, one sentence each.
    pub fn new(problems: &[String]) -> Self {
        let warnings = problems.iter().map(|text| {
            let code = code(text);
            let warning = Warning {
                warnable_code: code.clone(),
                severity: "medium".to_owned(),
                title: title(text).to_owned(),
                text: text.clone(),
            };
            (code, warning)
        });
        Self {
            warnings: warnings.collect(),
        }
    }

    /// Whether there is a problem.
    pub fn is_well(&self) -> bool {
        self.warnings.is_empty()
    }
}

/// A code from the text: its FNV-1a hash (64 bits), which is stable over versions of
/// the compiler.
fn code(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("warren-{hash:016x}")
}

/// The part of the sentence before its first reason or advice.
fn title(text: &str) -> &str {
    text.split([':', ';', '(']).next().unwrap_or(text).trim()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn problems_are_an_object_by_code() {
        let state = HealthState::new(&["no relay answers: all timed out".to_owned()]);
        let (code, warning) = state.warnings.first_key_value().unwrap();
        assert_eq!(code, "warren-2436475cafcdaee6");
        assert_eq!(warning.title, "no relay answers");
        assert!(!state.is_well());
        let json = serde_json::to_value(&state).unwrap();
        assert_eq!(json["Warnings"][code]["Severity"], "medium");
        assert_eq!(
            serde_json::to_string(&HealthState::default()).unwrap(),
            r#"{"Warnings":null}"#
        );
    }
}
