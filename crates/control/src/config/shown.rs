//! Values as TOML, for `config show` and for comparing two configurations.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use warren_control_core::{DnsName, ExtraRecord, Nameserver};
use warren_logging::{Format, Levels};

use crate::cli::args::OptionalListen;

/// A value that has a form in TOML.
pub(super) trait Shown {
    /// The value as TOML, in one line.
    fn shown(&self) -> String;

    /// The form of a secret value: no part of it.
    fn hidden(&self) -> String {
        quoted(HIDDEN)
    }
}

/// The text that stands for a secret.
const HIDDEN: &str = "(hidden)";

/// A text as TOML.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

macro_rules! shown_as_text {
    ($($kind:ty: |$value:ident| $text:expr;)*) => {
        $(impl Shown for $kind {
            fn shown(&self) -> String {
                let $value = self;
                quoted(&$text)
            }
        })*
    };
}

shown_as_text! {
    String: |text| text;
    PathBuf: |path| path.display().to_string();
    SocketAddr: |address| address.to_string();
    DnsName: |name| name.as_str();
    Nameserver: |server| server.as_str();
    Levels: |levels| levels.to_string();
    Format: |format| format.name();
    Duration: |time| duration(*time);
    OptionalListen: |listen| match listen {
        OptionalListen::Off => "off".to_owned(),
        OptionalListen::At(address) => address.to_string(),
    };
}

impl Shown for ExtraRecord {
    fn shown(&self) -> String {
        let [name, kind, value] =
            [self.name.as_str(), self.data.kind(), &self.data.value()].map(quoted);
        format!("{{ name = {name}, type = {kind}, value = {value} }}")
    }
}

impl Shown for bool {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for usize {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl<T: Shown> Shown for Vec<T> {
    fn shown(&self) -> String {
        let elements: Vec<_> = self.iter().map(Shown::shown).collect();
        format!("[{}]", elements.join(", "))
    }
}

impl<K: ToString, T: Shown> Shown for BTreeMap<K, T> {
    fn shown(&self) -> String {
        let members = self.iter();
        let members = members
            .map(|(name, value)| format!("{} = {}", quoted(&name.to_string()), value.shown()));
        let members: Vec<_> = members.collect();
        match members.is_empty() {
            true => "{}".to_owned(),
            false => format!("{{ {} }}", members.join(", ")),
        }
    }

    fn hidden(&self) -> String {
        let names = self
            .keys()
            .map(|name| (name.to_string(), HIDDEN.to_owned()));
        names.collect::<BTreeMap<String, String>>().shown()
    }
}

/// A time as it is written in the configuration.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let whole = units
        .into_iter()
        .find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit));
    match whole {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => "0".to_owned(),
    }
}
