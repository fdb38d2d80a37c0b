//! Capabilities of single nodes and attributes of hosts.

use ipnet::Ipv4Net;
use serde_json::Value;

use crate::selector::Selector;

/// An entry of `nodeAttrs`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NodeAttribute {
    pub(crate) targets: Vec<Selector>,
    pub(crate) attributes: Vec<String>,
    /// Application capabilities with their values, in file order.
    pub(crate) app: Vec<(String, Vec<Value>)>,
    /// The ranges from which matching nodes get their addresses.
    pub(crate) ip_pool: Vec<Ipv4Net>,
}

/// The kind of value of an attribute of `attrConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttributeKind {
    /// A string.
    Text,
    /// A boolean.
    Bool,
    /// A number.
    Number,
}

/// An entry of `attrConfig`: how a custom attribute of hosts is handled.
#[derive(Debug, Clone, PartialEq)]
pub struct AttributeConfig {
    /// The kind of its values; `None` if the file does not say.
    pub kind: Option<AttributeKind>,
    /// Whether a node may set it itself.
    pub allow_set_by_node: bool,
    /// Peers that receive the attribute.
    pub(crate) broadcast_to: Vec<Selector>,
}
