//! The address at which the server is asked about a login.

use std::fmt::Write as _;
use std::net::IpAddr;

use warren_control_types::NodeId;

/// Both ends of a login that the server decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckEnds<'a> {
    /// The address of the node that asks for the login.
    pub source_address: IpAddr,
    /// Its number.
    pub source: NodeId,
    /// The address of this node.
    pub own_address: IpAddr,
    /// The number of this node.
    pub own: NodeId,
    /// The user that the client asked for.
    pub wanted_user: &'a str,
}

impl CheckEnds<'_> {
    /// The path and query of a template. Its host is left out: the question goes through
    /// the control channel in any case. Values are escaped, and are not searched for
    /// variables again.
    pub(crate) fn expand(&self, template: &str, local_user: &str) -> String {
        let mut rest = path_and_query(template);
        let mut expanded = String::new();
        while let Some(at) = rest.find('$') {
            let (before, from) = rest.split_at(at);
            expanded.push_str(before);
            rest = match self.variable(from, local_user) {
                Some((name, value)) => {
                    expanded.push_str(&value);
                    &from[name.len()..]
                }
                None => {
                    expanded.push('$');
                    &from[1..]
                }
            };
        }
        expanded.push_str(rest);
        expanded
    }

    fn variable(&self, from: &str, local_user: &str) -> Option<(&'static str, String)> {
        let address = |address: IpAddr| escaped(&address.to_string());
        let table: [(&'static str, &dyn Fn() -> String); 6] = [
            ("$SRC_NODE_IP", &|| address(self.source_address)),
            ("$SRC_NODE_ID", &|| self.source.0.to_string()),
            ("$DST_NODE_IP", &|| address(self.own_address)),
            ("$DST_NODE_ID", &|| self.own.0.to_string()),
            ("$SSH_USER", &|| escaped(self.wanted_user)),
            ("$LOCAL_USER", &|| escaped(local_user)),
        ];
        let found = table.iter().find(|(name, _)| from.starts_with(name));
        found.map(|(name, value)| (*name, value()))
    }
}

/// The part of an address behind its host, with a slash in front.
fn path_and_query(url: &str) -> &str {
    let Some((_, behind)) = url.split_once("://") else {
        return if url.starts_with('/') { url } else { "/" };
    };
    behind.find('/').map_or("/", |at| &behind[at..])
}

/// A value for a query, by the rules of HTML forms.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            b' ' => escaped.push('+'),
            // Writing to a string does not fail.
            other => _ = write!(escaped, "%{other:02X}"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ends(wanted_user: &str) -> CheckEnds<'_> {
        CheckEnds {
            source_address: "fd7a::1".parse().unwrap(),
            source: NodeId(3),
            own_address: "100.64.0.9".parse().unwrap(),
            own: NodeId(9),
            wanted_user,
        }
    }

    #[test]
    fn variables_are_replaced_once_and_escaped() {
        let template = "https://server.example/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID\
                        ?a=$SRC_NODE_IP&b=$DST_NODE_IP&u=$SSH_USER&local_user=$LOCAL_USER&c=$X$";
        assert_eq!(
            ends("$DST_NODE_ID&x=1 ü").expand(template, "al/ice"),
            "/machine/ssh/action/3/to/9?a=fd7a%3A%3A1&b=100.64.0.9\
             &u=%24DST_NODE_ID%26x%3D1+%C3%BC&local_user=al%2Fice&c=$X$"
        );
    }

    #[test]
    fn the_host_of_a_template_is_left_out() {
        for (template, target) in [
            ("/a/b?c", "/a/b?c"),
            ("https://unused/a", "/a"),
            ("https://unused", "/"),
            ("evil", "/"),
        ] {
            assert_eq!(ends("u").expand(template, "u"), target, "{template}");
        }
    }
}
