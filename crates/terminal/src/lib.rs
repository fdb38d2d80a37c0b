//! Text from other machines, made safe for a terminal.
//!
//! Names, systems, versions, messages and capabilities are chosen by others. Printed as
//! they are, they could move the cursor, forge whole lines, or reverse what follows them.
//! Two steps keep them out:
//!
//! - an answer that is shown as text goes through [`shown`], which makes every text in it
//!   one [`printable`] line, whatever field it is in, so that a new field is covered too;
//! - everything that a program prints goes through a [`SafeWriter`], which lets through
//!   no control character but line feeds and tabs. It is the second line of defence.
//!
//! JSON is printed with [`json`]: the value is the same, only written in other escapes.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::io::{self, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Takes the place of a character that a terminal must not get.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Whether a character acts on a terminal, or on the text around it, instead of being
/// seen: control characters, and those that change the direction or that are invisible.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text in one line, without characters that act on a terminal.
pub fn printable(text: &str) -> String {
    let shown = |c: char| if acts(c) { REPLACEMENT } else { c };
    text.chars().map(shown).collect()
}

/// The text with its lines, without other characters that act on a terminal.
pub fn printable_lines(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c,
        c if acts(c) => REPLACEMENT,
        c => c,
    };
    text.chars().map(shown).collect()
}

/// The value with all its texts in one line each and without characters that act on a
/// terminal: those of fields, lists and maps, also as keys.
///
/// # Errors
/// When the type does not read what it writes.
pub fn shown<T: Serialize + DeserializeOwned>(value: &T) -> serde_json::Result<T> {
    let mut value = serde_json::to_value(value)?;
    clean(&mut value);
    serde_json::from_value(value)
}

fn clean(value: &mut Value) {
    match value {
        // Lines become one, which is easier to read with spaces between them.
        Value::String(text) => *text = printable(&text.replace('\n', " ")),
        Value::Array(values) => values.iter_mut().for_each(clean),
        Value::Object(members) => {
            let old = std::mem::take(members);
            *members = old
                .into_iter()
                .map(|(name, mut value)| {
                    clean(&mut value);
                    (printable(&name), value)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The value as JSON over several lines, of the same meaning, without characters that act
/// on a terminal.
///
/// # Errors
/// As `serde_json`.
pub fn json(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string_pretty(value).map(|text| escaped_json(&text))
}

/// As [`json`], in one line.
///
/// # Errors
/// As `serde_json`.
pub fn json_line(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(value).map(|text| escaped_json(&text))
}

/// JSON text of the same meaning: it contains such characters only within strings, where
/// an escape means the same, and as white space between values.
pub fn escaped_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if matches!(c, '\n' | '\t') || !acts(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
    out
}

/// A writer to a terminal (or pipe) that lets no other character through than
/// [`printable_lines`] does. Each write has to be whole characters, as those of
/// formatted text are.
#[derive(Debug)]
pub struct SafeWriter<W>(pub W);

impl<W: Write> Write for SafeWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = printable_lines(&String::from_utf8_lossy(bytes));
        self.0.write_all(text.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_all_languages_stay() {
        for text in ["büro-1", "東京", "קובץ", "نام‌ها", "👩‍💻", "a b"] {
            assert_eq!(printable(text), text);
        }
    }

    #[test]
    fn sequences_and_forged_lines_do_not_get_through() {
        let text = "linux\u{1b}[2J\r\nroot\u{9b}31m\u{202e}x\u{2028}y\t\u{7f}";
        let one = printable(text);
        assert!(!one.chars().any(acts), "{one:?}");
        assert_eq!(one.chars().count(), text.chars().count());
        assert_eq!(printable_lines("a\nb\tc\r"), "a\nb\tc\u{fffd}");
    }

    proptest! {
        #[test]
        fn nothing_that_acts_is_printed(text in any::<String>()) {
            prop_assert!(!printable(&text).chars().any(acts));
            let mut out = Vec::new();
            write!(SafeWriter(&mut out), "{text}").unwrap();
            let out = String::from_utf8(out).unwrap();
            prop_assert!(!out.chars().any(|c| acts(c) && c != '\n' && c != '\t'));
        }

        #[test]
        fn json_means_the_same_and_acts_on_nothing(
            value in prop::collection::btree_map(any::<String>(), any::<Vec<String>>(), 0..4)
        ) {
            for text in [json(&value).unwrap(), json_line(&value).unwrap()] {
                prop_assert!(!text.chars().any(|c| acts(c) && c != '\n'));
                let back: BTreeMap<String, Vec<String>> = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(&back, &value);
            }
        }

        #[test]
        fn every_text_of_an_answer_is_one_line(
            value in prop::collection::btree_map(any::<String>(), any::<Vec<String>>(), 0..4)
        ) {
            for (name, texts) in shown(&value).unwrap() {
                prop_assert!(!name.chars().any(acts));
                prop_assert!(!texts.iter().any(|text| text.chars().any(acts)));
            }
        }
    }
}
