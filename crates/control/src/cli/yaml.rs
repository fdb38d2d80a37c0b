//! JSON values as YAML: block style for lists and objects, texts in double quotes as in
//! JSON, which YAML reads the same way (YAML 1.2, section 7.3.1). Keys are in lower case, as
//! the YAML of Headscale has them.

use std::fmt::Write as _;

use serde_json::Value;

/// The value as a YAML document with a line break at its end.
pub(super) fn yaml(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out
}

/// Writes a value at the start of a line, or behind `- `, with this indentation for
/// further lines.
fn write(value: &Value, indent: usize, out: &mut String) {
    let mut is_first = true;
    let mut begin = |out: &mut String| {
        if !std::mem::take(&mut is_first) {
            out.extend(std::iter::repeat_n(' ', indent));
        }
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                begin(out);
                out.push_str("- ");
                write(item, indent + 2, out);
            }
        }
        Value::Object(entries) if !entries.is_empty() => {
            for (key, value) in entries {
                begin(out);
                let _ = write!(out, "{}:", key.to_lowercase());
                match value {
                    Value::Array(items) if !items.is_empty() => nested(value, indent, out),
                    Value::Object(inner) if !inner.is_empty() => nested(value, indent, out),
                    _ => {
                        out.push(' ');
                        write(value, indent + 2, out);
                    }
                }
            }
        }
        scalar_or_empty => {
            let _ = writeln!(out, "{scalar_or_empty}");
        }
    }
}

/// Writes a list or an object under its key.
fn nested(value: &Value, indent: usize, out: &mut String) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', indent + 2));
    write(value, indent + 2, out);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_and_objects_are_blocks_and_texts_are_quoted() {
        let value = json!([
            { "id": "1", "tags": ["tag:a", "tag:b"], "user": { "name": "a: \"b\"" }, "routes": [] },
            { "id": "2", "expiry": null, "online": true },
        ]);
        let text = "- id: \"1\"\n  routes: []\n  tags:\n    - \"tag:a\"\n    - \"tag:b\"\n  user:\n    name: \"a: \\\"b\\\"\"\n\
                    - expiry: null\n  id: \"2\"\n  online: true\n";
        assert_eq!(yaml(&value), text);
        assert_eq!(yaml(&json!({})), "{}\n");
        let value = json!({ "preAuthKey": { "aclTags": ["tag:A"] } });
        assert_eq!(yaml(&value), "preauthkey:\n  acltags:\n    - \"tag:A\"\n");
    }
}
