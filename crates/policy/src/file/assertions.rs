//! Reads the `tests` section: assertions that a policy makes about its own
//! rules.
//!
//! The hosted service reports a malformed test like a failing one; the message
//! here distinguishes the two.

use super::{Reader, Text};
use crate::json::Spanned;
use crate::model::{Test, TestTarget};
use crate::selector::Selector;

/// Protocols a test may name.
const TEST_PROTOCOLS: [u8; 3] = [6, 17, 132];

impl Reader<'_> {
    /// An entry of `tests`.
    pub(super) fn test(&mut self, value: &Spanned) {
        let known = [
            "src",
            "user",
            "proto",
            "accept",
            "allow",
            "deny",
            "srcPostureAttrs",
        ];
        let Some(fields) = self.fields(value, "a test", &known) else {
            return;
        };
        let before = self.problems.len();
        let protocol = self.protocol(&fields);
        if let (Some(number), Some(proto)) = (protocol, fields.get("proto"))
            && !TEST_PROTOCOLS.contains(&number)
        {
            let message = "a test's proto is tcp, udp, sctp or absent";
            self.problem(&proto.span, message);
        }
        let attributes = self.posed_attributes(&fields);
        let source = self.renamed(&fields, "src", "user");
        let source = self.test_source(value, source);
        let accept = self.renamed(&fields, "accept", "allow");
        let accept = self.targets(accept);
        let deny = self.targets(fields.get("deny"));
        if accept.is_empty() && deny.is_empty() && self.problems.len() == before {
            self.problem(&value.span, "the test asserts nothing");
        }
        let Some(source) = source else {
            return;
        };
        if let Some(selector) = self.test_selector(&source) {
            self.policy.tests.push(Test {
                source: selector,
                source_text: source.text.to_owned(),
                protocol,
                accept,
                deny,
                attributes,
            });
        }
    }

    /// Reads the single source of a test; errors are recorded.
    pub(super) fn test_source<'t>(
        &mut self,
        test: &Spanned,
        value: Option<&'t Spanned>,
    ) -> Option<Text<'t>> {
        let text = match value {
            Some(value) => self.text(value)?,
            None => Text {
                text: "",
                span: test.span.clone(),
            },
        };
        if text.text.is_empty() {
            self.problem(&text.span, "the test has no src");
            return None;
        }
        Some(text)
    }

    /// Resolves the source of a test to a selector; errors are recorded.
    pub(super) fn test_selector(&mut self, source: &Text<'_>) -> Option<Selector> {
        let selector = self.selector(source, "src=")?;
        let is_somebody = !matches!(
            selector,
            Selector::Any
                | Selector::OwnUser
                | Selector::Internet
                | Selector::DangerAll
                | Selector::Shared
                | Selector::Set(_)
                | Selector::Service(_)
        );
        if !is_somebody {
            let message = format!("{:?} cannot be a src", source.text);
            self.problem(&source.span, message);
        }
        is_somebody.then_some(selector)
    }

    fn targets(&mut self, value: Option<&Spanned>) -> Vec<TestTarget> {
        let mut out = Vec::new();
        for text in self.texts(value, "test destinations") {
            out.extend(self.target(&text));
        }
        out
    }

    fn target(&mut self, text: &Text<'_>) -> Option<TestTarget> {
        let whole = text.text;
        let parts = whole.rsplit_once(':').and_then(|(host, port)| {
            let digits = port.bytes().all(|b| b.is_ascii_digit());
            let port: u16 = port.parse().ok().filter(|port| digits && *port > 0)?;
            Some((host.trim_start_matches('[').trim_end_matches(']'), port))
        });
        let Some((host, port)) = parts else {
            let message = format!("{whole:?} is not host:port with one port");
            self.problem(&text.span, message);
            return None;
        };
        let host_text = Text {
            text: host,
            span: text.span.clone(),
        };
        let to = self.selector(&host_text, "")?;
        let unfit = match &to {
            Selector::Net(net) => net.prefix_len() != net.max_prefix_len() || host.contains('/'),
            Selector::Any
            | Selector::Internet
            | Selector::DangerAll
            | Selector::Shared
            | Selector::Set(_) => true,
            _ => false,
        };
        if unfit {
            let message = format!("{host:?} is not one address, user, group or tag");
            self.problem(&text.span, message);
            return None;
        }
        Some(TestTarget {
            to,
            port,
            text: whole.to_owned(),
        })
    }
}
