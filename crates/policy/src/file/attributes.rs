//! Reads the sections `nodeAttrs` and `attrConfig`.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::{Reader, Text};
use crate::json::Spanned;
use crate::model::{AttributeConfig, AttributeKind, NodeAttribute};
use crate::selector::Selector;

/// The IPv4 range of all tailnets.
const TAILNET_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(100, 64, 0, 0), 10);

/// Parts of that range with another use: the resolver on every node, and the
/// containers of ChromeOS.
const RESERVED_V4: [(Ipv4Addr, u8); 2] = [
    (Ipv4Addr::new(100, 100, 100, 0), 24),
    (Ipv4Addr::new(100, 115, 92, 0), 23),
];

impl Reader<'_> {
    /// An entry of `nodeAttrs`.
    pub(super) fn node_attribute(&mut self, value: &Spanned) {
        let known = ["target", "attr", "app", "ipPool"];
        let Some(fields) = self.fields(value, "an entry of nodeAttrs", &known) else {
            return;
        };
        let mut targets = Vec::new();
        for text in self.texts(fields.get("target"), "target") {
            targets.extend(self.attribute_target(&text));
        }
        let mut attributes = Vec::new();
        for text in self.texts(fields.get("attr"), "attr") {
            if text.text.is_empty() {
                self.problem(&text.span, "an attribute must have a name");
            } else {
                attributes.push(text.text.to_owned());
            }
        }
        let mut app = Vec::new();
        if let Some(value) = fields.get("app") {
            for member in self.members(value, "app") {
                let what = format!("the values of {:?}", member.name);
                let values = self.items(Some(&member.value).filter(|v| !v.is_null()), &what);
                let values = values.iter().map(Spanned::to_json).collect();
                app.push((member.name.trim().to_owned(), values));
            }
        }
        let mut ip_pool = Vec::new();
        for text in self.texts(fields.get("ipPool"), "ipPool") {
            ip_pool.extend(self.ip_pool(&text));
        }
        self.policy.node_attributes.push(NodeAttribute {
            targets,
            attributes,
            app,
            ip_pool,
        });
    }

    fn attribute_target(&mut self, text: &Text<'_>) -> Option<Selector> {
        let name = text.text;
        let is_kind = name == "*" || name.contains(['@', ':', '/']);
        if !is_kind && name.parse::<Ipv4Addr>().is_err() && !self.hosts.contains_key(name) {
            let help = self
                .suggest(name, self.hosts.keys().map(String::as_str))
                .or_else(|| {
                    let help = "expected *, an address, a host of \"hosts\", a login, group:, tag: or autogroup:";
                    Some(help.to_owned())
                });
            self.problem_with(&text.span, format!("{name:?}: invalid address"), help);
            return None;
        }
        match self.selector(text, "")? {
            Selector::OwnUser
            | Selector::Internet
            | Selector::DangerAll
            | Selector::Shared
            | Selector::Service(_) => {
                let help = "expected nodes of this tailnet, by what they are or by address";
                self.problem_with(
                    &text.span,
                    format!("{name:?} cannot be a target of nodeAttrs"),
                    Some(help.to_owned()),
                );
                None
            }
            target => Some(target),
        }
    }

    fn ip_pool(&mut self, text: &Text<'_>) -> Option<Ipv4Net> {
        let whole = text.text;
        let net = whole
            .parse::<IpNet>()
            .ok()
            .or_else(|| Some(IpNet::from(whole.parse::<std::net::IpAddr>().ok()?)));
        let message = match net {
            None => format!("IPPool({whole}): not a prefix"),
            Some(IpNet::V6(_)) => format!("IPPool({whole}): only IPv4 addresses are chosen"),
            Some(IpNet::V4(net)) => {
                let net = net.trunc();
                let touches = |(address, length): &(Ipv4Addr, u8)| {
                    Ipv4Net::new(*address, *length)
                        .is_ok_and(|reserved| reserved.contains(&net) || net.contains(&reserved))
                };
                let tailnet = Ipv4Net::new(TAILNET_V4.0, TAILNET_V4.1);
                if !tailnet.is_ok_and(|tailnet| tailnet.contains(&net)) {
                    format!("IPPool({whole}): network not within 100.64.0.0/10")
                } else if RESERVED_V4.iter().any(touches) {
                    format!("IPPool({whole}): network within reserved range")
                } else {
                    return Some(net);
                }
            }
        };
        let help = "expected a part of 100.64.0.0/10 without 100.100.100.0/24 and 100.115.92.0/23";
        self.problem_with(&text.span, message, Some(help.to_owned()));
        None
    }

    /// Reads the `attrConfig` section.
    pub(super) fn attribute_config(&mut self, value: &Spanned) {
        for member in self.members(value, "attrConfig") {
            let name = member.name.trim();
            let known = ["type", "allowSetByNode", "broadcastToPeers"];
            let Some(fields) = self.fields(&member.value, "an entry of attrConfig", &known) else {
                continue;
            };
            let kind = fields.get("type").and_then(|value| self.text(value));
            let kind = kind.and_then(|text| match text.text {
                "string" => Some(AttributeKind::Text),
                "bool" => Some(AttributeKind::Bool),
                "number" => Some(AttributeKind::Number),
                other => {
                    let help = self
                        .suggest(other, ["string", "bool", "number"])
                        .or_else(|| Some("expected string, bool or number".to_owned()));
                    let message = format!("{other:?} is not a valid attribute type");
                    self.problem_with(&text.span, message, help);
                    None
                }
            });
            let allow_set_by_node = self.flag(fields.get("allowSetByNode"));
            let mut broadcast_to = Vec::new();
            for text in self.texts(fields.get("broadcastToPeers"), "broadcastToPeers") {
                broadcast_to.extend(self.attribute_target(&text));
            }
            let config = AttributeConfig {
                kind,
                allow_set_by_node,
                broadcast_to,
            };
            let configs = &mut self.policy.attribute_configs;
            configs.insert(name.to_owned(), config);
        }
    }
}
