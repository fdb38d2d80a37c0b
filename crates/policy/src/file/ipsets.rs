//! Reads the `ipsets` section: named sets of addresses.
//!
//! The entries of a set are applied in order. A set may name other sets. These
//! are resolved first, without recursion, so that a long chain of sets uses no
//! stack, and a cycle is detected and reported.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Reader, Text};
use crate::json::Spanned;
use crate::selector::{IpSet, parse_address, parse_net};
use crate::span::{INTERNET, Span};

/// The largest number of ranges in one set.
const MAX_RANGES: usize = 10_000;

/// The number of ranges that may be processed to build all sets. Without this
/// bound, a short file of sets that include each other could take very long to
/// read.
const MAX_WORK: usize = 2_000_000;

/// One entry of a set: addresses to add or to remove.
struct Step<'t> {
    adds: bool,
    what: What,
    text: Text<'t>,
}

enum What {
    Spans(Vec<Span>),
    Set(String),
}

impl Reader<'_> {
    pub(super) fn ipsets(&mut self, value: &Spanned) {
        let mut steps: BTreeMap<&str, Vec<Step<'_>>> = BTreeMap::new();
        let members = self.members(value, "ipsets");
        for member in &members {
            let name = member.name.trim();
            if name.strip_prefix("ipset:").is_none_or(str::is_empty) {
                let message = format!("ipset name {name:?} must start with \"ipset:\"");
                self.problem(&member.name_span, message);
                continue;
            }
            let texts = self.texts(Some(&member.value).filter(|v| !v.is_null()), name);
            let own = texts.into_iter().filter_map(|text| self.step(name, text));
            let own = own.collect();
            steps.insert(name, own);
        }
        self.resolve_ipsets(&steps);
    }

    fn step<'t>(&mut self, set: &str, text: Text<'t>) -> Option<Step<'t>> {
        let (adds, rest) = match text.text.split_once(char::is_whitespace) {
            Some(("add", rest)) => (true, rest.trim()),
            Some(("remove", rest)) => (false, rest.trim()),
            _ => (true, text.text),
        };
        let host = rest.strip_prefix("host:").unwrap_or(rest);
        let range = || {
            let (first, last) = rest.split_once('-')?;
            let first: IpAddr = parse_address(first.trim())?;
            let last: IpAddr = parse_address(last.trim())?;
            Some((first, last))
        };
        let what = if let Some(net) = parse_net(rest).or_else(|| self.hosts.get(host).copied()) {
            What::Spans(vec![Span::from(&net)])
        } else if let Some((first, last)) = range() {
            match Span::between(first, last) {
                Some(span) => What::Spans(vec![span]),
                None => {
                    let message = if first.is_ipv4() == last.is_ipv4() {
                        format!("{set}: the range {rest:?} ends before it begins")
                    } else {
                        format!("{set}: the range {rest:?} mixes IPv4 and IPv6")
                    };
                    self.problem(&text.span, message);
                    return None;
                }
            }
        } else if rest.starts_with("ipset:") {
            What::Set(rest.to_owned())
        } else if rest == "autogroup:internet" {
            What::Spans(INTERNET.iter().map(|named| named.span).collect())
        } else {
            let message = format!("{set}: {rest:?} cannot be part of an ipset");
            let help = self
                .suggest(host, self.hosts.keys().map(String::as_str))
                .or_else(|| {
                    let kinds = "an address, a prefix, a range first-last, a host of \"hosts\", another ipset: or autogroup:internet";
                    Some(format!("expected {kinds}, after \"add\", \"remove\" or nothing"))
                });
            self.problem_with(&text.span, message, help);
            return None;
        };
        Some(Step { adds, what, text })
    }

    /// Builds the sets depth first with an explicit stack: a set is built after
    /// all sets that it names.
    fn resolve_ipsets(&mut self, steps: &BTreeMap<&str, Vec<Step<'_>>>) {
        let mut left = MAX_WORK;
        for start in steps.keys() {
            // Sets under construction, each with the index of its current step.
            let mut open: Vec<(&str, usize)> = vec![(start, 0)];
            let mut is_open: BTreeMap<&str, usize> = BTreeMap::from([(*start, 0)]);
            while let Some((name, at)) = open.pop() {
                if self.ipsets.contains_key(name) {
                    is_open.remove(name);
                    continue;
                }
                let own = steps.get(name).map(Vec::as_slice).unwrap_or_default();
                let missing = own.iter().enumerate().skip(at).find_map(|(at, step)| {
                    let What::Set(other) = &step.what else {
                        return None;
                    };
                    (!self.ipsets.contains_key(other)).then_some((at, other, step))
                });
                let Some((at, other, step)) = missing else {
                    let spans = self.make_set(name, own, &mut left);
                    let set = IpSet {
                        name: name.to_owned(),
                        spans: spans.into(),
                    };
                    self.ipsets.insert(name.to_owned(), set);
                    is_open.remove(name);
                    continue;
                };
                open.push((name, at + 1));
                if let Some(depth) = is_open.get(other.as_str()) {
                    let path = open.iter().skip(*depth).map(|(name, _)| *name);
                    let mut path: Vec<&str> = path.take(8).collect();
                    path.push(other);
                    let message = format!("ipsets form a cycle: {}", path.join(" -> "));
                    self.problem(&step.text.span, message);
                } else if let Some((other, _)) = steps.get_key_value(other.as_str()) {
                    is_open.insert(other, open.len());
                    open.push((other, 0));
                } else {
                    let help = self.suggest(other, steps.keys().copied());
                    let message = format!("{name}: ipset not found: {other:?}");
                    self.problem_with(&step.text.span, message, help);
                }
            }
        }
    }

    fn make_set(&mut self, name: &str, steps: &[Step<'_>], left: &mut usize) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        // Additions are collected and merged in one pass.
        let mut added: Vec<Span> = Vec::new();
        for step in steps {
            let operand: &[Span] = match &step.what {
                What::Spans(spans) => spans,
                What::Set(other) => self
                    .ipsets
                    .get(other)
                    .map(|set| &*set.spans)
                    .unwrap_or_default(),
            };
            if step.adds {
                added.extend(operand);
            } else {
                added.append(&mut spans);
                spans = Span::union(std::mem::take(&mut added));
                spans = Span::difference(&spans, operand);
            }
            let size = added.len() + spans.len();
            let work = operand.len() + if step.adds { 0 } else { size };
            *left = left.saturating_sub(work);
            if size > MAX_RANGES || *left == 0 {
                let message = if size > MAX_RANGES {
                    format!("{name} is too large: it holds more than {MAX_RANGES} ranges")
                } else {
                    "the ipsets are too large together".to_owned()
                };
                self.problem(&step.text.span, message);
                return Vec::new();
            }
        }
        added.append(&mut spans);
        Span::union(added)
    }
}
