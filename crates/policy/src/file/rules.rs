//! Reads the rule sections: `acls` and `grants`.

use super::{Fields, Reader, Text, is_empty};
use crate::json::Spanned;
use crate::model::{Reach, Rule};
use crate::selector::{Ports, Selector, has_ports, parse_ports, parse_protocol, protocol_names};

/// Capabilities in the domain of the vendor that a policy may grant.
const ALLOWED_VENDOR_CAPABILITIES: [&str; 8] = [
    "tailscale.com/cap/drive",
    "tailscale.com/cap/relay",
    "tailscale.com/cap/webui",
    "tailscale.com/cap/kubernetes",
    "tailscale.com/cap/tsidp",
    "tailscale.com/cap/secrets",
    "tailscale.com/cap/tailsql",
    "tailscale.com/cap/golink",
];

const SELF_NEEDS_USERS: &str =
    "autogroup:self can only be used with users, groups, or supported autogroups";

impl Reader<'_> {
    /// An entry of `acls`.
    pub(super) fn acl(&mut self, value: &Spanned) {
        let known = [
            "action",
            "src",
            "dst",
            "proto",
            "users",
            "ports",
            "srcPosture",
        ];
        let Some(fields) = self.fields_and_notes(value, "an acl", &known) else {
            return;
        };
        let postures = self.rule_postures(&fields);
        self.action(value, &fields);
        let protocol = self.protocol(&fields);
        let sources = self.renamed(&fields, "src", "users");
        let sources = self.sources(sources);

        let mut reach = Vec::new();
        let destinations = self.renamed(&fields, "dst", "ports");
        for text in self.texts(destinations, "dst") {
            let Some((to, ports)) = self.destination_with_ports(&text, protocol) else {
                continue;
            };
            if to == Selector::OwnUser && !self.self_allowed(&sources, true) {
                self.problem(&text.span, SELF_NEEDS_USERS);
            }
            reach.push(Reach {
                to: vec![to],
                protocol,
                ports,
            });
        }
        self.policy.rules.push(Rule {
            sources,
            reach,
            app: Vec::new(),
            app_to: Vec::new(),
            via: Vec::new(),
            postures,
        });
    }

    /// An entry of `grants`.
    pub(super) fn grant(&mut self, value: &Spanned) {
        let known = ["src", "dst", "ip", "app", "via", "srcPosture"];
        let Some(fields) = self.fields(value, "a grant", &known) else {
            return;
        };
        let postures = self.rule_postures(&fields);
        let sources = self.sources(fields.get("src"));
        let via = self.via(&fields);
        let (ip, app) = (fields.get("ip"), fields.get("app"));
        if ip.is_none_or(is_empty) && app.is_none_or(is_empty) {
            self.problem(&value.span, "ip and app can not both be empty");
        }
        let app = self.app(app);
        let mut to = Vec::new();
        for text in self.texts(fields.get("dst"), "dst") {
            to.extend(self.grant_destination(&text, &sources, !app.is_empty()));
        }
        let mut reach = Vec::new();
        for text in self.texts(ip, "ip") {
            if let Some((protocol, ports)) = self.ip(&text) {
                reach.push(Reach {
                    to: to.clone(),
                    protocol,
                    ports,
                });
            }
        }
        self.policy.rules.push(Rule {
            sources,
            reach,
            app_to: if app.is_empty() { Vec::new() } else { to },
            app,
            via,
            postures,
        });
    }

    fn action(&mut self, rule: &Spanned, fields: &Fields<'_>) {
        let help = Some("rules only allow: write \"action\": \"accept\"".to_owned());
        let Some(value) = fields.get("action") else {
            self.problem_with(&rule.span, "action=\"\" is not supported", help);
            return;
        };
        if let Some(text) = self.literal(value)
            && text.text != "accept"
        {
            let message = format!("action={:?} is not supported", text.text);
            self.problem_with(&text.span, message, help);
        }
    }

    pub(super) fn protocol(&mut self, fields: &Fields<'_>) -> Option<u8> {
        let text = self.text(fields.get("proto")?)?;
        if text.text.is_empty() {
            return None;
        }
        let protocol = parse_protocol(text.text);
        if protocol.is_none() {
            self.unknown_protocol(&text, text.text);
        }
        protocol
    }

    fn unknown_protocol(&mut self, text: &Text<'_>, name: &str) {
        let help = self
            .suggest(name, protocol_names())
            .or_else(|| Some("expected a protocol name or a number from 0 to 255".to_owned()));
        self.problem_with(&text.span, format!("unknown protocol: {name:?}"), help);
    }

    fn sources(&mut self, value: Option<&Spanned>) -> Vec<Selector> {
        let mut out = Vec::new();
        for text in self.texts(value, "src") {
            match self.selector(&text, "src=") {
                Some(Selector::OwnUser | Selector::Internet | Selector::Service(_)) => {
                    let message = format!("{:?} not valid on the src side of a rule", text.text);
                    self.problem(&text.span, message);
                }
                found => out.extend(found),
            }
        }
        out
    }

    /// Whether a rule with these sources may have `autogroup:self` as a
    /// destination.
    fn self_allowed(&self, sources: &[Selector], any_too: bool) -> bool {
        sources.iter().all(|source| match source {
            Selector::User(_)
            | Selector::Group(_)
            | Selector::Domain(_)
            | Selector::Member
            | Selector::Role(_) => true,
            Selector::Any => any_too,
            _ => false,
        })
    }

    /// Reads `host:ports` of an acl.
    fn destination_with_ports(
        &mut self,
        text: &Text<'_>,
        protocol: Option<u8>,
    ) -> Option<(Selector, Vec<Ports>)> {
        let whole = text.text;
        let Some((host, ports)) = whole.rsplit_once(':') else {
            let help = Some(format!("add the ports, such as \"{whole}:*\""));
            self.problem_with(
                &text.span,
                format!("dst={whole:?}: ports are missing"),
                help,
            );
            return None;
        };
        let ports = self.ports(text, whole, ports, protocol)?;
        let host = match bracketed(host) {
            Ok(host) => host,
            Err(()) => {
                let message = format!("dst={whole:?}: brackets are for IPv6 addresses only");
                self.problem(&text.span, message);
                return None;
            }
        };
        let host = Text {
            text: &host,
            span: text.span.clone(),
        };
        let to = self.selector(&host, &format!("dst={:?}: ", host.text))?;
        match to {
            Selector::DangerAll => {
                self.problem(&text.span, "cannot use autogroup:danger-all as a dst");
                None
            }
            Selector::Shared => {
                self.problem(&text.span, "cannot use autogroup:shared as a dst");
                None
            }
            Selector::Service(_) => {
                let help = "write a grant instead".to_owned();
                self.problem_with(&text.span, "acls cannot have services as dst", Some(help));
                None
            }
            to => Some((to, ports)),
        }
    }

    fn ports(
        &mut self,
        text: &Text<'_>,
        whole: &str,
        ports: &str,
        protocol: Option<u8>,
    ) -> Option<Vec<Ports>> {
        match parse_ports(ports) {
            Err(error) => {
                let message = format!("dst={whole:?}: port range {ports:?}: {error}");
                let help = "expected *, a port, a range such as 80-443, or a list of these";
                self.problem_with(&text.span, message, Some(help.to_owned()));
                None
            }
            Ok(ports) if !has_ports(protocol) && ports != [Ports::ALL] => {
                let message = format!("dst={whole:?}: this protocol has no ports, use \":*\"");
                self.problem(&text.span, message);
                None
            }
            Ok(ports) => Some(ports),
        }
    }

    fn grant_destination(
        &mut self,
        text: &Text<'_>,
        sources: &[Selector],
        with_app: bool,
    ) -> Option<Selector> {
        let to = self.selector(text, &format!("dst={:?}: ", text.text))?;
        let message = match &to {
            Selector::DangerAll => "cannot use autogroup:danger-all as a dst".to_owned(),
            Selector::Shared => "cannot use autogroup:shared as a dst".to_owned(),
            Selector::Internet if with_app => {
                "cannot use app grants with autogroup:internet".to_owned()
            }
            Selector::OwnUser if !self.self_allowed(sources, false) => SELF_NEEDS_USERS.to_owned(),
            Selector::Net(net) if net.prefix_len() == 0 => format!(
                "dst {:?}: to allow all IP addresses, use \"*\" or \"autogroup:internet\"",
                text.text
            ),
            _ => return Some(to),
        };
        self.problem(&text.span, message);
        None
    }

    /// Reads an entry of a grant's `ip`: `*`, ports, or `protocol:ports`.
    fn ip(&mut self, text: &Text<'_>) -> Option<(Option<u8>, Vec<Ports>)> {
        let whole = text.text;
        let (protocol, ports) = match whole.split_once(':') {
            None => (None, whole),
            Some((_, ports)) if ports.contains(':') => {
                self.problem(&text.span, format!("ip {whole:?} has more than one colon"));
                return None;
            }
            Some((name, ports)) => match parse_protocol(name) {
                Some(protocol) => (Some(protocol), ports),
                None => {
                    self.unknown_protocol(text, name);
                    return None;
                }
            },
        };
        match parse_ports(ports) {
            Err(error) => {
                self.problem(
                    &text.span,
                    format!("ip {whole:?}: port range {ports:?}: {error}"),
                );
                None
            }
            Ok(found) if !has_ports(protocol) && found != [Ports::ALL] => {
                let message = format!("ip {whole:?}: this protocol has no ports, use \":*\"");
                self.problem(&text.span, message);
                None
            }
            Ok(found) => Some((protocol, found)),
        }
    }

    fn app(&mut self, value: Option<&Spanned>) -> Vec<(String, Vec<serde_json::Value>)> {
        let Some(value) = value else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for member in self.members(value, "app") {
            let name = member.name.as_str();
            let domain = name.split('/').next().unwrap_or_default();
            if name.contains("://") || !name.contains('/') {
                let message = "capability name must have the form {domain}/{path}";
                self.problem(&member.name_span, message);
            } else if (domain == "tailscale.com" || domain.ends_with(".tailscale.com"))
                && !ALLOWED_VENDOR_CAPABILITIES.contains(&name)
            {
                let message = "capability name must not be in the tailscale.com domain";
                self.problem(&member.name_span, message);
            }
            let values = self.items(Some(&member.value).filter(|v| !v.is_null()), name);
            out.push((
                name.to_owned(),
                values.iter().map(Spanned::to_json).collect(),
            ));
        }
        out
    }

    fn via(&mut self, fields: &Fields<'_>) -> Vec<String> {
        let mut out = Vec::new();
        for text in self.texts(fields.get("via"), "via") {
            if !text.text.starts_with("tag:") {
                self.problem(&text.span, "via can only be a tag");
            } else if self.policy.knows_tag(text.text) {
                out.push(text.text.to_owned());
            } else {
                let tags = self.policy.tag_owners.keys().map(String::as_str);
                let help = self.suggest(text.text, tags);
                self.problem_with(&text.span, format!("tag {:?} not found", text.text), help);
            }
        }
        out
    }
}

/// Removes the brackets of `[v6]` and `[v6]/len`.
fn bracketed(host: &str) -> Result<String, ()> {
    if !host.contains(['[', ']']) {
        return Ok(host.to_owned());
    }
    let (address, rest) = host
        .strip_prefix('[')
        .and_then(|host| host.split_once(']'))
        .ok_or(())?;
    if address.parse::<std::net::Ipv6Addr>().is_err() || !(rest.is_empty() || rest.starts_with('/'))
    {
        return Err(());
    }
    Ok(format!("{address}{rest}"))
}
