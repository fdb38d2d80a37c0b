//! Explanations as text for a terminal and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::context::Endpoint;
use super::edit::Edit;
use super::layout::SourceLocation;
use super::ports::{protocol_name, service_text};
use super::why::{Carrier, Link, PairAnswer, Reason, Why};

/// The length to which a rule is cut, in characters.
const WIDTH: usize = 100;

impl Why {
    /// For a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (n, answer) in self.answers.iter().enumerate() {
            if n > 0 {
                out.push('\n');
            }
            self.one(answer, &mut out);
        }
        if self.left_out > 0 {
            let left = self.left_out;
            let _ = writeln!(
                out,
                "\n{left} more pairs; name one machine to see its answer"
            );
        }
        out
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "file": self.file,
            "answers": self.answers.iter().map(PairAnswer::json).collect::<Value>(),
            "left_out": self.left_out,
        })
    }

    fn one(&self, answer: &PairAnswer, out: &mut String) {
        let word = if answer.allowed { "allowed" } else { "denied" };
        let (from, to) = answer.shown_pair();
        let _ = writeln!(
            out,
            "{word:<8} {} -> {} {}",
            end(&answer.source, &from),
            end(&answer.destination, &to),
            service_text(answer.protocol, answer.port)
        );
        if answer.no_rules && answer.allowed {
            row(
                out,
                "rule",
                "none: without acls and grants everything is allowed",
            );
        }
        for reason in &answer.reasons {
            self.reason(reason, out);
        }
        for carrier in &answer.carriers {
            row(out, "route", &carrier.text());
        }
        if answer.allowed && answer.carriers.is_empty() {
            let name = &answer.destination.name;
            row(out, "route", &format!("none needed: {to} is {name} itself"));
        }
        for near in &answer.near {
            row(
                out,
                "closest",
                &format!("{}  {}", self.at(&near.rule), near.says),
            );
        }
        for (n, edit) in answer.edits.iter().enumerate() {
            let label = if n == 0 { "edit" } else { "narrower" };
            self.edit(edit, label, out);
        }
        for note in &answer.notes {
            row(out, "note", note);
        }
    }

    fn at(&self, place: &SourceLocation) -> String {
        format!("{}:{}:{}", self.file, place.line, place.column)
    }

    fn reason(&self, reason: &Reason, out: &mut String) {
        let rule = format!("{}  {}", self.at(&reason.rule), cut(&reason.rule.text));
        row(out, "rule", &rule);
        for (label, link) in [("src", &reason.source), ("dst", &reason.destination)] {
            let steps = link.steps.join(", ");
            let text = match &link.entry {
                Some(entry) => format!("{}:{}  {}  {steps}", entry.line, entry.column, entry.text),
                None => steps,
            };
            row(out, label, &text);
        }
        if !reason.via.is_empty() {
            row(out, "via", &reason.via.join(", "));
        }
        if let Some(posture) = &reason.posture {
            row(out, "posture", &format!("the source has {posture}"));
        }
    }

    fn edit(&self, edit: &Edit, label: &str, out: &mut String) {
        let others = match edit.others {
            0 => "would allow nothing else".to_owned(),
            1 => "would also open 1 other pair of machines".to_owned(),
            n => format!("would also open {n} other pairs of machines"),
        };
        row(
            out,
            label,
            &format!("{}  {}; {others}", self.at(&edit.location), edit.what),
        );
        for (sign, lines) in [('-', &edit.before), ('+', &edit.after)] {
            for (n, line) in lines.iter().enumerate() {
                let _ = writeln!(out, "    {:>4} {sign} {line}", edit.location.line + n);
            }
        }
    }
}

fn row(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "  {label:<9} {text}");
}

fn cut(text: &str) -> String {
    let text = text.trim_end();
    if text.chars().count() <= WIDTH {
        return text.to_owned();
    }
    let head: String = text.chars().take(WIDTH).collect();
    format!("{head} ...")
}

fn end(end: &Endpoint, address: &str) -> String {
    match (&end.node, end.owner.is_empty()) {
        (None, _) => address.to_owned(),
        (Some(_), true) => format!("{} {address}", end.name),
        (Some(_), false) => format!("{} ({}) {address}", end.name, end.owner),
    }
}

impl PairAnswer {
    /// The addresses to show: a pair that works, otherwise the first ones.
    fn shown_pair(&self) -> (String, String) {
        let first = |end: &Endpoint| {
            end.addresses
                .first()
                .map_or_else(|| end.name.clone(), ToString::to_string)
        };
        match self.open.first() {
            Some((from, to)) => (from.to_string(), to.to_string()),
            None => (first(&self.source), first(&self.destination)),
        }
    }

    fn json(&self) -> Value {
        json!({
            "allowed": self.allowed,
            "source": endpoint(&self.source),
            "destination": endpoint(&self.destination),
            "protocol": protocol_name(self.protocol),
            "port": self.port,
            "open": self.open.iter().map(|(from, to)| json!([from.to_string(), to.to_string()])).collect::<Value>(),
            "no_rules": self.no_rules,
            "reasons": self.reasons.iter().map(Reason::json).collect::<Value>(),
            "routes": self.carriers.iter().map(Carrier::json).collect::<Value>(),
            "closest": self.near.iter().map(|near| json!({
                "rule": near.rule.json(),
                "says": near.says,
            })).collect::<Value>(),
            "edits": self.edits.iter().map(Edit::json).collect::<Value>(),
            "notes": self.notes,
        })
    }
}

fn endpoint(end: &Endpoint) -> Value {
    json!({
        "node": end.node.map(|id| id.0),
        "name": end.name,
        "owner": end.owner,
        "addresses": end.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

impl SourceLocation {
    fn json(&self) -> Value {
        json!({ "line": self.line, "column": self.column, "text": self.text })
    }
}

impl Link {
    fn json(&self) -> Value {
        json!({ "entry": self.entry.as_ref().map(SourceLocation::json), "steps": self.steps })
    }
}

impl Reason {
    fn json(&self) -> Value {
        json!({
            "rule": self.rule.json(),
            "source": self.source.json(),
            "destination": self.destination.json(),
            "opens": self.service,
            "via": self.via,
            "posture": self.posture,
        })
    }
}

impl Carrier {
    fn text(&self) -> String {
        let state = match (self.approved, self.lets_in) {
            (false, _) => "offered, NOT APPROVED",
            (true, true) => "approved, its filter lets it in",
            (true, false) => "approved, its filter does not let it in",
        };
        format!("{} serves {} ({state})", self.name, self.route)
    }

    fn json(&self) -> Value {
        json!({
            "node": self.node.0,
            "name": self.name,
            "route": self.route.to_string(),
            "approved": self.approved,
            "lets_in": self.lets_in,
        })
    }
}

impl Edit {
    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "place": self.location.json(),
            "start": self.span.start,
            "end": self.span.end,
            "text": self.text,
            "before": self.before,
            "after": self.after,
            "others": self.others,
        })
    }
}
