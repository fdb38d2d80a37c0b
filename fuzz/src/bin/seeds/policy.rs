//! Seeds of the target `policy`.

use std::io;
use std::path::Path;

use crate::Seeds;

/// Policies of both forms, and one with errors.
pub(crate) fn write(seeds: &Path) -> io::Result<()> {
    let policy = Seeds::new(seeds, "policy");
    policy.put(
        "acls",
        br#"// access of groups
{
  "groups": {"group:dev": ["alice@example.com", "bob@"]},
  "hosts": {"web": "100.64.0.3"},
  "tagOwners": {"tag:web": ["group:dev"]},
  "acls": [
    {"action": "accept", "src": ["group:dev"], "dst": ["tag:web:80,443", "web:22", "*:1-9"]},
    {"action": "accept", "proto": "udp", "src": ["autogroup:member"], "dst": ["10.0.0.0/8:*"]},
  ],
  "autoApprovers": {"routes": {"10.0.0.0/8": ["bob@"]}, "exitNode": ["tag:web"]},
  "tests": [{"src": "bob@", "accept": ["tag:web:80"], "deny": ["tag:web:81"]}],
}"#,
    )?;
    policy.put(
        "grants",
        br#"{"grants": [{"src": ["*"], "dst": ["autogroup:self"], "ip": ["tcp:80-90", "*"],
  "app": {"example.com/cap": [{"a": 1}]}}], "tagOwners": {"tag:web": []}}"#,
    )?;
    policy.put("errors", br#"{"acls": [{"action": "deny", "src": ["group:none", 5], "dst": ["x:0-99999"]}], "aclz": []}"#)
}
