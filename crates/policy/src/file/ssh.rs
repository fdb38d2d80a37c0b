//! Reads the `ssh` section.

use std::time::Duration;

use super::{Fields, Reader, Text};
use crate::go_duration;
use crate::json::Spanned;
use crate::model::{Logins, SshRule};
use crate::selector::{Selector, parse_net};

/// How long a check stays valid when the rule sets no period.
const DEFAULT_PERIOD: Duration = Duration::from_hours(12);

/// The longest period for which a check may stay valid.
const MAX_PERIOD: Duration = Duration::from_hours(168);

impl Reader<'_> {
    /// An entry of `ssh`.
    pub(super) fn ssh_rule(&mut self, value: &Spanned) {
        let known = [
            "action",
            "src",
            "dst",
            "users",
            "checkPeriod",
            "acceptEnv",
            "srcPosture",
            "recorder",
            "enforceRecorder",
        ];
        let Some(fields) = self.fields(value, "an ssh rule", &known) else {
            return;
        };
        let postures = self.rule_postures(&fields);
        let check = self.ssh_action(value, &fields);
        let (sources, source_texts) = self.ssh_sources(&fields);
        let to = self.ssh_destinations(&fields, &sources, &source_texts);
        let logins = self.logins(value, &fields);
        let mut accept_env = Vec::new();
        for value in self.items(fields.get("acceptEnv"), "acceptEnv") {
            let Some(text) = self.literal(value) else {
                continue;
            };
            if text.text.is_empty() {
                self.problem(&text.span, "acceptEnv values cannot be empty");
            }
            accept_env.push(text.text.to_owned());
        }
        let recorders = self.recorders(&fields);
        let enforce_recorder = self.flag(fields.get("enforceRecorder"));
        if enforce_recorder && recorders.is_empty() {
            let message = "enforceRecorder needs a recorder";
            let help = "name the tag of the nodes that record in \"recorder\"".to_owned();
            self.problem_with(&value.span, message, Some(help));
        }
        self.policy.ssh.push(SshRule {
            check: check.flatten(),
            sources,
            to,
            logins,
            accept_env,
            postures,
            recorders,
            enforce_recorder,
        });
    }

    /// Reads the action and its period. The outer `None` means that it is not
    /// valid.
    fn ssh_action(&mut self, rule: &Spanned, fields: &Fields<'_>) -> Option<Option<Duration>> {
        let help = || Some("expected \"accept\" or \"check\"".to_owned());
        let action = match fields.get("action") {
            Some(value) => self.text(value)?,
            None => Text {
                text: "",
                span: rule.span.clone(),
            },
        };
        let period = self.check_period(fields);
        match action.text {
            "accept" => {
                if let Some(value) = fields.get("checkPeriod") {
                    let message = "checkPeriod is only valid with action \"check\"";
                    self.problem(&value.span, message);
                }
                Some(None)
            }
            "check" => Some(Some(period?)),
            "" => {
                self.problem_with(&action.span, "action must be specified", help());
                None
            }
            other => {
                let message = format!("{other:?} is not a valid action");
                self.problem_with(&action.span, message, help());
                None
            }
        }
    }

    fn check_period(&mut self, fields: &Fields<'_>) -> Option<Duration> {
        let Some(value) = fields.get("checkPeriod") else {
            return Some(DEFAULT_PERIOD);
        };
        let text = self.literal(value)?;
        if text.text == "always" {
            return Some(Duration::ZERO);
        }
        let help = "expected a duration up to 168h, such as \"20h\" or \"30m\", or \"always\"";
        let message = match go_duration::parse(text.text) {
            Err(message) => message,
            Ok(nanoseconds) => {
                let written = go_duration::format(nanoseconds);
                match u64::try_from(nanoseconds).map(Duration::from_nanos) {
                    Err(_) => format!("checkPeriod {written} must be a positive duration"),
                    Ok(period) if period > MAX_PERIOD => {
                        format!("checkPeriod {written} is above the max (168h)")
                    }
                    Ok(period) => return Some(period),
                }
            }
        };
        self.problem_with(&text.span, message, Some(help.to_owned()));
        None
    }

    fn ssh_sources<'t>(&mut self, fields: &Fields<'t>) -> (Vec<Selector>, Vec<Text<'t>>) {
        let (mut out, mut texts) = (Vec::new(), Vec::new());
        for text in self.texts(fields.get("src"), "src") {
            let found = match self.selector(&text, "") {
                Some(
                    selector @ (Selector::User(_)
                    | Selector::Group(_)
                    | Selector::Tag(_)
                    | Selector::Domain(_)
                    | Selector::Member
                    | Selector::Tagged
                    | Selector::Shared
                    | Selector::Role(_)),
                ) => selector,
                Some(Selector::OwnUser) => {
                    let message = format!("{:?} not valid on the src side of a rule", text.text);
                    self.problem(&text.span, message);
                    continue;
                }
                Some(_) => {
                    let message = format!("{:?} cannot be the src of an ssh rule", text.text);
                    let help = "expected users, groups, tags or autogroups of these".to_owned();
                    self.problem_with(&text.span, message, Some(help));
                    continue;
                }
                None => continue,
            };
            out.push(found);
            texts.push(text);
        }
        (out, texts)
    }

    fn ssh_destinations(
        &mut self,
        fields: &Fields<'_>,
        sources: &[Selector],
        source_texts: &[Text<'_>],
    ) -> Vec<Selector> {
        let tagged = sources
            .iter()
            .position(|source| matches!(source, Selector::Tag(_) | Selector::Tagged))
            .and_then(|at| source_texts.get(at))
            .map(|text| text.text.to_owned());
        let mut out = Vec::new();
        for text in self.texts(fields.get("dst"), "dst") {
            let name = text.text;
            if parse_net(name).is_some() || (name != "*" && !name.contains(['@', ':'])) {
                let message = format!("invalid dst {name:?}");
                let help =
                    "name tags or users; ssh rules do not accept hosts and addresses".to_owned();
                self.problem_with(&text.span, message, Some(help));
                continue;
            }
            let Some(selector) = self.selector(&text, "") else {
                continue;
            };
            let (message, help) = match (&selector, &tagged) {
                (Selector::Any, _) => (
                    "wildcard (*) is not supported as SSH destination".to_owned(),
                    "write autogroup:member for devices of users, autogroup:tagged for tagged ones",
                ),
                (
                    Selector::Tag(_) | Selector::Tagged | Selector::Role(_) | Selector::Domain(_),
                    _,
                ) => {
                    out.push(selector);
                    continue;
                }
                (Selector::User(_) | Selector::OwnUser | Selector::Member, Some(tag)) => (
                    format!("{tag:?} cannot be granted access to {name:?}"),
                    "tagged devices may only log in to tagged devices",
                ),
                (Selector::OwnUser | Selector::Member, None) => {
                    out.push(selector);
                    continue;
                }
                (Selector::User(_), None) => {
                    if sources.iter().all(|source| *source == selector) {
                        out.push(selector);
                        continue;
                    }
                    (
                        format!(
                            "{name:?} can only be the dst of an ssh rule whose src is the same user"
                        ),
                        "write autogroup:self to let users log in to their own devices",
                    )
                }
                _ => (
                    format!("{name:?} cannot be the dst of an ssh rule"),
                    "expected tags, autogroup:self, autogroup:member or autogroup:tagged",
                ),
            };
            self.problem_with(&text.span, message, Some(help.to_owned()));
        }
        out
    }

    fn logins(&mut self, rule: &Spanned, fields: &Fields<'_>) -> Logins {
        let mut out = Logins::default();
        let help = || {
            let help = "name local users such as \"root\", or write \"autogroup:nonroot\"";
            Some(help.to_owned())
        };
        let value = fields.get("users");
        let texts = self.texts(value, "users");
        let is_list = value.is_none_or(|value| matches!(value.value, crate::json::Value::Array(_)));
        let is_empty = value.is_none_or(super::is_empty);
        if is_list && is_empty {
            let span = &value.unwrap_or(rule).span;
            self.problem_with(span, "users must be specified", help());
        }
        for text in texts {
            match text.text {
                "" | "*" => {
                    let message = format!("user {:?} is not valid", text.text);
                    self.problem_with(&text.span, message, help());
                }
                "root" => out.root = true,
                "autogroup:nonroot" => out.nonroot = true,
                name => match name.strip_prefix("localpart:*@") {
                    Some(domain) if !domain.is_empty() => {
                        self.own_domain(&text, domain);
                        out.domains.push(domain.to_owned());
                    }
                    // Every other text is the name of a local user.
                    _ => {
                        out.names.insert(name.to_owned());
                    }
                },
            }
        }
        out
    }

    fn recorders(&mut self, fields: &Fields<'_>) -> Vec<Selector> {
        let mut out = Vec::new();
        for text in self.texts(fields.get("recorder"), "recorder") {
            match self.selector(&text, "") {
                Some(
                    selector @ (Selector::Tag(_)
                    | Selector::Tagged
                    | Selector::User(_)
                    | Selector::Group(_)),
                ) => out.push(selector),
                Some(_) => {
                    let message = format!("{:?} cannot be a recorder", text.text);
                    let help = "expected the tag of the nodes that record".to_owned();
                    self.problem_with(&text.span, message, Some(help));
                }
                None => {}
            }
        }
        out
    }
}
