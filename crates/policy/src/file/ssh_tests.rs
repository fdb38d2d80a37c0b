//! Reads the `sshTests` section: assertions that a policy makes about SSH
//! logins.

use super::{Fields, Reader, Text};
use crate::json::Spanned;
use crate::model::SshTest;
use crate::selector::Selector;

impl Reader<'_> {
    /// An entry of `sshTests`.
    pub(super) fn ssh_test(&mut self, value: &Spanned) {
        let known = ["src", "dst", "accept", "check", "deny", "srcPostureAttrs"];
        let Some(fields) = self.fields(value, "an ssh test", &known) else {
            return;
        };
        let before = self.problems.len();
        let attributes = self.posed_attributes(&fields);
        let accept = self.test_logins(&fields, "accept");
        let check = self.test_logins(&fields, "check");
        let deny = self.test_logins(&fields, "deny");
        let asserts = [&accept, &check, &deny].iter().any(|list| !list.is_empty());
        if !asserts && self.problems.len() == before {
            self.problem(&value.span, "the ssh test asserts nothing");
        }
        let to = self.ssh_test_destinations(&fields);
        if to.is_empty() && self.problems.len() == before {
            self.problem(&value.span, "the ssh test has no dst");
        }
        let Some(source) = self.test_source(value, fields.get("src")) else {
            return;
        };
        if let Some(selector) = self.test_selector(&source) {
            self.policy.ssh_tests.push(SshTest {
                source: selector,
                source_text: source.text.to_owned(),
                to,
                accept,
                check,
                deny,
                attributes,
            });
        }
    }

    fn test_logins(&mut self, fields: &Fields<'_>, name: &str) -> Vec<String> {
        let mut out = Vec::new();
        for text in self.texts(fields.get(name), name) {
            if text.text.is_empty() {
                let message = "a user of the destination must have a name";
                self.problem(&text.span, message);
            } else {
                out.push(text.text.to_owned());
            }
        }
        out
    }

    fn ssh_test_destinations(&mut self, fields: &Fields<'_>) -> Vec<(Selector, String)> {
        let mut out = Vec::new();
        for text in self.texts(fields.get("dst"), "dst") {
            if let Some(selector) = self.ssh_test_destination(&text) {
                out.push((selector, text.text.to_owned()));
            }
        }
        out
    }

    fn ssh_test_destination(&mut self, text: &Text<'_>) -> Option<Selector> {
        let name = text.text;
        if name.starts_with("tag:") && !self.policy.knows_tag(name) {
            let help = self
                .suggest(name, self.policy.tag_owners.keys().map(String::as_str))
                .or_else(|| Some("destinations of ssh tests have no port".to_owned()));
            let message = format!("SSH tests dst contains unknown tag {name:?}");
            self.problem_with(&text.span, message, help);
            return None;
        }
        let selector = self.selector(text, "dst=")?;
        let fits = match &selector {
            Selector::Net(net) => net.prefix_len() == net.max_prefix_len(),
            Selector::Any
            | Selector::Internet
            | Selector::DangerAll
            | Selector::Shared
            | Selector::Set(_)
            | Selector::Service(_) => false,
            _ => true,
        };
        if !fits {
            let help = "expected tags, users, groups, autogroups of these, or one address";
            let message = format!("SSH tests dst contains disallowed element {name:?}");
            self.problem_with(&text.span, message, Some(help.to_owned()));
            return None;
        }
        Some(selector)
    }
}
