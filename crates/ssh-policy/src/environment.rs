//! The variables that a client may set for its session.

/// Bytes of the longest name and value.
const LONGEST_NAME: usize = 128;
const LONGEST_VALUE: usize = 16 * 1024;

/// Names with meaning for the loader, the C library, shells or this server, whatever a
/// policy says. Some of them would act on a program that still runs as root (`login`).
const CLOSED: &[&str] = &[
    "BASH_ENV",
    "CDPATH",
    "ENV",
    "GETCONF_DIR",
    "GOTRACEBACK",
    "HOME",
    "HOSTALIASES",
    "IFS",
    "LOCALDOMAIN",
    "LOCPATH",
    "LOGNAME",
    "MAIL",
    "NIS_PATH",
    "NLSPATH",
    "PATH",
    "RES_OPTIONS",
    "RESOLV_HOST_CONF",
    "SHELL",
    "SHELLOPTS",
    "TERMCAP",
    "TERMPATH",
    "TMPDIR",
    "TZDIR",
    "USER",
];
const CLOSED_PREFIXES: &[&str] = &[
    "DYLD_", "GCONV_", "GLIBC_", "LD_", "MALLOC_", "RESOLV_", "SSH_", "TERMINFO", "WARREN_", "_RLD",
];

/// The patterns of a rule, for the names of variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    patterns: Vec<String>,
}

impl Environment {
    /// `patterns`: `*` stands for any text, `?` for one character.
    pub(crate) fn new(patterns: &[String]) -> Self {
        Self {
            patterns: patterns.to_vec(),
        }
    }

    /// Whether the client may set a variable. The language of messages is always accepted;
    /// patterns count only where the node has the capability for them (`with_patterns`).
    pub fn accepts(&self, name: &str, value: &str, with_patterns: bool) -> bool {
        if !is_safe_variable(name, value) {
            return false;
        }
        if is_language(name) {
            return true;
        }
        let matches = |pattern: &String| glob(pattern.as_bytes(), name.as_bytes());
        with_patterns && self.patterns.iter().any(matches)
    }
}

fn is_language(name: &str) -> bool {
    name == "LANG" || name.starts_with("LC_")
}

/// Whether a variable has a form that is harmless at all times.
pub fn is_safe_variable(name: &str, value: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let is_closed = CLOSED.contains(&name)
        || CLOSED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix));
    // The C library opens files by the name of a language.
    let is_path = is_language(name) && value.contains('/');
    (1..=LONGEST_NAME).contains(&name.len())
        && value.len() <= LONGEST_VALUE
        && name.bytes().all(is_plain)
        && !value.contains('\0')
        && !is_closed
        && !is_path
}

/// Matches in linear space and at most quadratic time: only the last `*` is remembered.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                last_star = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((star, from)) = last_star else {
                    return false;
                };
                last_star = Some((star, from + 1));
                p = star + 1;
                t = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(patterns: &[&str]) -> Environment {
        Environment {
            patterns: patterns.iter().map(|one| (*one).to_owned()).collect(),
        }
    }

    #[test]
    fn patterns_cover_names() {
        for (pattern, name, is_covered) in [
            ("GIT_*", "GIT_EDITOR", true),
            ("GIT_*", "GIT_", true),
            ("GIT_*", "GIT", false),
            ("X?", "XY", true),
            ("X?", "X", false),
            ("*", "ANY", true),
            ("**A*B", "xAyAzB", true),
            ("A", "a", false),
            ("", "A", false),
        ] {
            let accepted = patterns(&[pattern]).accepts(name, "v", true);
            assert_eq!(accepted, is_covered, "{pattern} {name}");
            assert!(!patterns(&[pattern]).accepts(name, "v", false));
        }
    }

    #[test]
    fn closed_names_are_refused_whatever_a_policy_says() {
        let all = patterns(&["*"]);
        for name in [
            "LD_PRELOAD",
            "LD_",
            "DYLD_X",
            "GOTRACEBACK",
            "PATH",
            "BASH_ENV",
            "GLIBC_TUNABLES",
            "SSH_AUTH_SOCK",
            "SSH_CONNECTION",
            "A=B",
            "A B",
            "",
            "Ä",
            "A\n",
            "WARREN_LOG",
        ] {
            assert!(!all.accepts(name, "v", true), "{name:?}");
        }
        assert!(!all.accepts("A", "v\0w", true));
        assert!(!all.accepts("A", &"v".repeat(LONGEST_VALUE + 1), true));
        assert!(!all.accepts(&"A".repeat(LONGEST_NAME + 1), "v", true));
    }

    #[test]
    fn the_language_needs_no_pattern_and_is_no_path() {
        let none = Environment::default();
        assert!(none.accepts("LANG", "de_DE.UTF-8", false));
        assert!(none.accepts("LC_ALL", "C", false));
        assert!(!none.accepts("LC_ALL", "/tmp/x", false));
        assert!(!none.accepts("LANGUAGE", "de", false));
        assert!(!none.accepts("TERM", "xterm", false));
    }

    #[test]
    fn a_pattern_of_many_stars_does_not_take_long() {
        let pattern = "*a".repeat(2_000);
        assert!(!glob(pattern.as_bytes(), "a".repeat(1_999).as_bytes()));
    }
}
