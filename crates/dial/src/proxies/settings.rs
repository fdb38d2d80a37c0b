//! The variables of the environment, read.

use std::net::IpAddr;

use percent_encoding::percent_decode_str;
use url::Url;
use warren_wire::socks5::client as socks5;

use super::{Credentials, Exceptions, Kind, OutgoingProxies, Proxy};

/// A variable that names no proxy this program can use. The text does not repeat the
/// value: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{variable} is not the address of a proxy: {problem} (it looks like \
     http://proxy.example.com:3128); correct it or remove it from the environment"
)]
pub struct UnusableSetting {
    variable: &'static str,
    problem: String,
}

impl UnusableSetting {
    /// The name of the variable.
    pub fn variable(&self) -> &'static str {
        self.variable
    }
}

/// The two names of each variable, the preferred one first.
const HTTPS: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const HTTP: [&str; 2] = ["HTTP_PROXY", "http_proxy"];
const ALL: [&str; 2] = ["ALL_PROXY", "all_proxy"];
const NONE: [&str; 2] = ["NO_PROXY", "no_proxy"];

impl OutgoingProxies {
    /// The proxies of an environment, whose variables `get` looks up. Empty variables
    /// count as absent.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                let value = get(name)?.trim().to_owned();
                (!value.is_empty()).then_some((name, value))
            })
        };
        let setting = |names| {
            let (variable, value) = first(names).or_else(|| first(ALL))?;
            let proxy = Proxy::parse(variable, &value);
            Some(proxy.map_err(|problem| UnusableSetting { variable, problem }))
        };
        let exceptions = first(NONE).map(|(_, list)| Exceptions::parse(&list));
        Self {
            http: setting(HTTP),
            https: setting(HTTPS),
            exceptions: exceptions.unwrap_or_default(),
        }
    }
}

impl Proxy {
    /// The proxy of a value. The error is the problem, without the value.
    fn parse(variable: &'static str, value: &str) -> Result<Self, String> {
        let with_scheme = match value.contains("://") {
            true => value.to_owned(),
            false => format!("http://{value}"),
        };
        let url: Url = with_scheme
            .parse()
            .map_err(|error| format!("it is not a URL ({error})"))?;
        let (kind, usual_port) = match url.scheme() {
            "http" => (Kind::Http, 80),
            "https" => (Kind::Https, 443),
            "socks5" | "socks5h" => (Kind::Socks5, 1080),
            _ => return Err("the proxy must be http://, https:// or socks5://".to_owned()),
        };
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err("it has no host".to_owned());
        }
        let is_address = host.parse::<IpAddr>().is_ok();
        let is_name = host
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'%');
        if !is_address && !is_name {
            return Err("its host is neither a name nor an address".to_owned());
        }
        let decoded = |text: &str| -> Result<String, String> {
            let text = percent_decode_str(text).decode_utf8();
            text.map(Into::into)
                .map_err(|_| "its user or password is not UTF-8".to_owned())
        };
        let user = decoded(url.username())?;
        let password = decoded(url.password().unwrap_or_default())?;
        let credentials =
            (!user.is_empty() || !password.is_empty()).then_some(Credentials { user, password });
        if let Some(Credentials { user, password }) = &credentials {
            if user.contains(':') && kind != Kind::Socks5 {
                return Err("its user contains a colon, which HTTP cannot carry".to_owned());
            }
            let fits = socks5::password(user.as_bytes(), password.as_bytes()).is_some();
            if kind == Kind::Socks5 && !fits {
                let problem = "SOCKS5 wants a user and a password of 1 to 255 bytes each";
                return Err(problem.to_owned());
            }
        }
        Ok(Self {
            kind,
            host: host.to_owned(),
            port: url.port().unwrap_or(usual_port),
            credentials,
            variable,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::proxies::Scheme::{Http, Https};

    fn proxies(variables: &[(&str, &str)]) -> OutgoingProxies {
        OutgoingProxies::from_variables(|wanted| {
            let found = variables.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_choose_the_proxy_of_a_connection() {
        let shown = |variables: &[(&str, &str)], scheme| {
            let proxies = proxies(variables);
            let proxy = proxies.choose(scheme, "control.example", 443).unwrap();
            proxy.map(|proxy| format!("{} {proxy}", proxy.variable))
        };
        let table: &[(&[(&str, &str)], _, _)] = &[
            (&[], Https, None),
            (&[("HTTPS_PROXY", "")], Https, None),
            (
                &[("HTTPS_PROXY", "http://p:3128")],
                Https,
                Some("HTTPS_PROXY http://p:3128"),
            ),
            (&[("HTTPS_PROXY", "http://p:3128")], Http, None),
            (&[("HTTP_PROXY", "http://p:3128")], Https, None),
            (
                &[("HTTP_PROXY", "http://p:3128")],
                Http,
                Some("HTTP_PROXY http://p:3128"),
            ),
            (
                &[("https_proxy", "p")],
                Https,
                Some("https_proxy http://p:80"),
            ),
            (
                &[("https_proxy", "a"), ("HTTPS_PROXY", "b")],
                Https,
                Some("HTTPS_PROXY http://b:80"),
            ),
            (
                &[("ALL_PROXY", "socks5://p")],
                Https,
                Some("ALL_PROXY socks5://p:1080"),
            ),
            (
                &[("all_proxy", "socks5h://p:9")],
                Http,
                Some("all_proxy socks5://p:9"),
            ),
            (
                &[("ALL_PROXY", "a"), ("HTTPS_PROXY", "b")],
                Http,
                Some("ALL_PROXY http://a:80"),
            ),
            (
                &[("HTTPS_PROXY", "https://p")],
                Https,
                Some("HTTPS_PROXY https://p:443"),
            ),
            (
                &[("HTTPS_PROXY", "http://u:p%40ss@[2001:db8::1]:8080/")],
                Https,
                Some("HTTPS_PROXY http://[2001:db8::1]:8080"),
            ),
            (
                &[("HTTPS_PROXY", "p"), ("NO_PROXY", ".example")],
                Https,
                None,
            ),
            (
                &[("HTTPS_PROXY", "p"), ("no_proxy", "control.example:443")],
                Https,
                None,
            ),
            (
                &[("HTTPS_PROXY", "p"), ("NO_PROXY", "other.example")],
                Https,
                Some("HTTPS_PROXY http://p:80"),
            ),
        ];
        for (variables, scheme, expected) in table {
            assert_eq!(
                shown(variables, *scheme).as_deref(),
                *expected,
                "{variables:?}"
            );
        }
        let both = proxies(&[("ALL_PROXY", "p")]);
        assert_eq!(both.variables(), ["ALL_PROXY"]);
    }

    #[test]
    fn credentials_are_decoded_and_never_shown() {
        let proxies = proxies(&[("HTTPS_PROXY", "http://me:s%3Acr%40t@p:1")]);
        let proxy = proxies.choose(Https, "a.example", 1).unwrap().unwrap();
        let header = proxy.authorization().unwrap();
        let encoded = header.strip_prefix("Basic ").unwrap();
        let text = data_encoding::BASE64.decode(encoded.as_bytes()).unwrap();
        assert_eq!(text, b"me:s:cr@t");
        let shown = format!("{proxies:?} {proxy}");
        assert!(
            !shown.contains("s:cr") && !shown.contains("s%3A"),
            "{shown}"
        );
    }

    #[test]
    fn values_without_a_proxy_name_the_variable_and_hide_the_value() {
        for value in [
            "ftp://user:secret@p:1",
            "socks4://secret@p",
            "http://user:secret@",
            "http://user:secret@p:99999",
            "http://user:secret@p q",
            "socks5://secret@p",
            "http://us%3Aer:secret@p",
            "http://user:secret%ff@p",
        ] {
            let proxies = proxies(&[("HTTPS_PROXY", value)]);
            let error = proxies.choose(Https, "a.example", 443).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("HTTPS_PROXY is not"), "{value}: {text}");
            assert!(!text.contains("secret"), "{value}: {text}");
            assert_eq!(proxies.choose(Https, "127.0.0.1", 443), Ok(None));
        }
    }

    proptest! {
        #[test]
        fn any_value_is_read_without_panic(value in ".{0,60}") {
            let proxies = proxies(&[("ALL_PROXY", &value), ("NO_PROXY", &value)]);
            let _ = proxies.choose(Https, "a.example", 443);
        }
    }
}
