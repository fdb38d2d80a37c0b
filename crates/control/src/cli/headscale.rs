//! The spelling of Headscale: its flags and commands, rewritten to ours.
//!
//! Scripts call `headscale nodes expire -i 3 --force`. Such a line means a command of
//! ours, `nodes expire id:3`, and is rewritten to it before it is parsed, so that there is
//! one table of commands. Lines in our spelling are not changed. The program may be called
//! `headscale`, or have that word as its first argument.
//!
//! Source: headscale: cmd/headscale/cli/.

use std::ffi::OsString;

/// The meaning of a flag of Headscale.
#[derive(Debug, Clone, Copy)]
enum Becomes {
    /// Its value names the record, behind this prefix, before all other words.
    Record(&'static str),
    /// This flag, with its value.
    Flag(&'static str),
    /// This flag, without a value.
    Switch(&'static str),
}

/// A command of Headscale.
struct Spelling {
    area: &'static [&'static str],
    command: &'static [&'static str],
    ours: &'static [&'static str],
    /// Short and long name, and the meaning.
    flags: &'static [(char, &'static str, Becomes)],
}

use Becomes::{Flag, Record, Switch};

const USERS: &[&str] = &["users", "user"];
const NODES: &[&str] = &["nodes", "node"];
const KEYS: &[&str] = &["preauthkeys", "preauthkey", "authkey", "pre"];
const AUTH: &[&str] = &["auth"];
const POLICY: &[&str] = &["policy"];
const NODE: (char, &str, Becomes) = ('i', "identifier", Record("id:"));

const SPELLINGS: &[Spelling] = &[
    Spelling {
        area: USERS,
        command: &["create", "c", "new"],
        ours: &["users", "create"],
        flags: &[
            ('d', "display-name", Flag("--display-name")),
            ('e', "email", Flag("--email")),
            ('p', "picture-url", Flag("--picture-url")),
        ],
    },
    Spelling {
        area: USERS,
        command: &["list", "ls", "show"],
        ours: &["users", "list"],
        flags: &[
            ('i', "identifier", Flag("--identifier")),
            ('n', "name", Flag("--name")),
            ('e', "email", Flag("--email")),
        ],
    },
    Spelling {
        area: USERS,
        command: &["destroy", "delete"],
        ours: &["users", "delete"],
        flags: &[NODE, ('n', "name", Record("name:"))],
    },
    Spelling {
        area: USERS,
        command: &["rename", "mv"],
        ours: &["users", "rename"],
        flags: &[
            NODE,
            ('n', "name", Record("name:")),
            ('r', "new-name", Flag("--new-name")),
        ],
    },
    Spelling {
        area: NODES,
        command: &["register"],
        ours: &["nodes", "approve"],
        flags: &[('k', "key", Flag("--key")), ('u', "user", Flag("--user"))],
    },
    Spelling {
        area: NODES,
        command: &["list", "ls"],
        ours: &["nodes", "list"],
        flags: &[('u', "user", Flag("--user"))],
    },
    Spelling {
        area: NODES,
        command: &["list-routes", "lsr", "routes"],
        ours: &["nodes", "routes"],
        flags: &[NODE],
    },
    Spelling {
        area: NODES,
        command: &["expire", "logout", "exp", "e"],
        ours: &["nodes", "expire"],
        flags: &[
            NODE,
            ('e', "expiry", Flag("--at")),
            ('d', "disable", Switch("--never")),
        ],
    },
    Spelling {
        area: NODES,
        command: &["rename"],
        ours: &["nodes", "rename"],
        flags: &[NODE],
    },
    Spelling {
        area: NODES,
        command: &["delete", "del"],
        ours: &["nodes", "delete"],
        flags: &[NODE],
    },
    Spelling {
        area: NODES,
        command: &["tag", "tags", "t"],
        ours: &["nodes", "tag"],
        flags: &[NODE, ('t', "tags", Flag("--tag"))],
    },
    Spelling {
        area: NODES,
        command: &["approve-routes"],
        ours: &["nodes", "approve-routes"],
        flags: &[NODE, ('r', "routes", Flag("--routes"))],
    },
    Spelling {
        area: KEYS,
        command: &["list", "ls", "show"],
        ours: &["preauthkeys", "list"],
        flags: &[],
    },
    Spelling {
        area: KEYS,
        command: &["create", "c", "new"],
        ours: &["preauthkeys", "create"],
        flags: &[
            ('u', "user", Flag("--user")),
            ('e', "expiration", Flag("--expiry")),
        ],
    },
    Spelling {
        area: KEYS,
        command: &["expire", "revoke", "exp", "e"],
        ours: &["preauthkeys", "expire"],
        flags: &[('i', "id", Record(""))],
    },
    Spelling {
        area: KEYS,
        command: &["delete", "del", "rm", "d"],
        ours: &["preauthkeys", "delete"],
        flags: &[('i', "id", Record(""))],
    },
    Spelling {
        area: AUTH,
        command: &["register"],
        ours: &["nodes", "approve"],
        flags: &[('\0', "auth-id", Record("")), ('u', "user", Flag("--user"))],
    },
    Spelling {
        area: AUTH,
        command: &["approve"],
        ours: &["ssh-checks", "approve"],
        flags: &[('\0', "auth-id", Record(""))],
    },
    Spelling {
        area: AUTH,
        command: &["reject"],
        ours: &["nodes", "reject"],
        flags: &[('\0', "auth-id", Record(""))],
    },
    Spelling {
        area: POLICY,
        command: &["get", "show", "view", "fetch"],
        ours: &["policy", "get"],
        flags: &[],
    },
    Spelling {
        area: POLICY,
        command: &["set", "put", "update"],
        ours: &["policy", "set"],
        flags: &[('f', "file", Record(""))],
    },
    Spelling {
        area: POLICY,
        command: &["check"],
        ours: &["policy", "check"],
        flags: &[('f', "file", Record(""))],
    },
];

/// Flags of the whole program that have a value.
const WITH_VALUE: &[&str] = &["-o", "--output", "-c", "--state-dir"];

/// Rewrites a command line, with the name of the program in front.
pub(super) fn rewrite(mut args: Vec<OsString>) -> Vec<OsString> {
    if args.get(1).is_some_and(|word| word == "headscale") {
        args.remove(1);
    }
    let words = positions(&args);
    let (Some(area_at), Some(command_at)) = (words.first().copied(), words.get(1).copied()) else {
        return args;
    };
    let named = |names: &[&str], at: usize| {
        let word = args.get(at).and_then(|word| word.to_str());
        word.is_some_and(|word| names.contains(&word))
    };
    let found = SPELLINGS
        .iter()
        .find(|spelling| named(spelling.area, area_at) && named(spelling.command, command_at));
    let Some(spelling) = found else {
        return args;
    };
    let mut out: Vec<OsString> = Vec::with_capacity(args.len());
    let mut rest = args.into_iter().enumerate();
    out.extend(rest.by_ref().take(area_at).map(|(_, word)| word));
    out.extend(spelling.ours.iter().map(OsString::from));
    let rest = rest.filter(|(at, _)| *at != area_at && *at != command_at);
    let (front, behind) = spelling.meaning(rest.map(|(_, word)| word));
    out.extend(front);
    out.extend(behind);
    out
}

/// Where the words that are no flags stand, up to the second.
fn positions(args: &[OsString]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = 1;
    while let Some(word) = args.get(at).and_then(|word| word.to_str()) {
        if found.len() == 2 || word == "--" {
            break;
        }
        if WITH_VALUE.contains(&word) {
            at += 1;
        } else if !word.starts_with('-') {
            found.push(at);
        }
        at += 1;
    }
    found
}

impl Spelling {
    /// The words that name the record, and all others.
    fn meaning(&self, mut words: impl Iterator<Item = OsString>) -> (Vec<OsString>, Vec<OsString>) {
        let (mut front, mut behind) = (Vec::new(), Vec::new());
        while let Some(word) = words.next() {
            if word == "--" {
                behind.push(word);
                behind.extend(words);
                break;
            }
            let flag = word.to_str().and_then(|text| self.flag(text));
            let Some((becomes, attached)) = flag else {
                behind.push(word);
                continue;
            };
            let mut value = || attached.map(OsString::from).or_else(|| words.next());
            match becomes {
                Record(prefix) => {
                    let mut named = OsString::from(prefix);
                    named.push(value().unwrap_or_default());
                    front.push(named);
                }
                Flag(ours) => {
                    behind.push(ours.into());
                    behind.extend(value());
                }
                Switch(ours) => behind.push(ours.into()),
            }
        }
        (front, behind)
    }

    /// The meaning of a word that is a flag, and the value in the same word.
    fn flag<'a>(&self, word: &'a str) -> Option<(Becomes, Option<&'a str>)> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        if let Some(name) = name.strip_prefix("--") {
            let found = self.flags.iter().find(|(_, long, _)| *long == name);
            return found.map(|(_, _, becomes)| (*becomes, value));
        }
        let mut letters = name.strip_prefix('-')?.chars();
        let letter = letters.next()?;
        let found = self.flags.iter().find(|(short, ..)| *short == letter);
        let (_, _, becomes) = found?;
        let rest = letters.as_str();
        let is_number = rest.bytes().all(|byte| byte.is_ascii_digit());
        match becomes {
            _ if rest.is_empty() => Some((*becomes, value)),
            // `-i3`; a longer word is a flag of ours with one dash.
            Record(_) | Flag(_) if is_number => Some((*becomes, Some(rest))),
            Record(_) | Flag(_) | Switch(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let out = rewrite(words);
        let words: Vec<_> = out.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn lines_in_the_spelling_of_headscale_mean_commands_of_ours() {
        for (line, ours) in [
            ("h nodes expire -i 3 --force", "h nodes expire id:3 --force"),
            (
                "h nodes expire --identifier=3 -d",
                "h nodes expire id:3 --never",
            ),
            (
                "h -o json nodes rename new -i 3",
                "h -o json nodes rename id:3 new",
            ),
            (
                "h node exp -i3 -e 2030-01-01T00:00:00Z",
                "h nodes expire id:3 --at 2030-01-01T00:00:00Z",
            ),
            (
                "h nodes tag -i 3 -t tag:a,tag:b",
                "h nodes tag id:3 --tag tag:a,tag:b",
            ),
            ("h nodes ls -u ann", "h nodes list --user ann"),
            ("h nodes lsr -i 3 -o yaml", "h nodes routes id:3 -o yaml"),
            (
                "h nodes register -u ann -k abc",
                "h nodes approve --user ann --key abc",
            ),
            ("h users destroy -n ann", "h users delete name:ann"),
            (
                "h users rename -i 1 -r bea",
                "h users rename id:1 --new-name bea",
            ),
            (
                "h pre create -u 1 -e 24h --reusable",
                "h preauthkeys create --user 1 --expiry 24h --reusable",
            ),
            ("h preauthkeys expire --id 4", "h preauthkeys expire 4"),
            ("h policy set -f acl.hujson", "h policy set acl.hujson"),
            (
                "h auth register --auth-id x -u ann",
                "h nodes approve x --user ann",
            ),
            (
                "h -c /etc/headscale/config.yaml nodes list",
                "h -c /etc/headscale/config.yaml nodes list",
            ),
            ("h headscale users list", "h users list"),
        ] {
            assert_eq!(rewritten(line), ours, "{line}");
        }
    }

    #[test]
    fn lines_in_our_spelling_stay_as_they_are() {
        for line in [
            "w nodes expire db --never",
            "w nodes show db",
            "w nodes rename db db2 --json",
            "w nodes list -user ann",
            "w nodes expire db -in 30d",
            "w users create ann",
            "w preauthkeys create --user ann --expiry 1h",
            "w policy why laptop db:22 --file x",
            "w debug c2n db /echo --data -i",
            "w serve --listen 0.0.0.0:80",
            "w",
        ] {
            assert_eq!(rewritten(line), line);
        }
    }
}
