//! A strict parser of Prometheus' text form (exposition format 0.0.4).

use std::collections::{BTreeMap, BTreeSet};

/// The name of a metric, and its labels in the order in which they are written.
pub type Sample = (String, Vec<(String, String)>);

/// Reads all samples. Each family must have `HELP` and `TYPE` once, in this order, in front
/// of its samples, and all of its samples there.
///
/// # Errors
/// The text is not in that form, a head or a sample comes twice, or a sample is apart from
/// its family.
pub fn parse_metrics(text: &str) -> Result<BTreeMap<Sample, String>, String> {
    let mut seen = BTreeSet::new();
    let mut found = BTreeMap::new();
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("the last line does not end".to_owned());
    }
    let mut lines = text.split_terminator('\n').peekable();
    while let Some(line) = lines.next() {
        let help = line.strip_prefix("# HELP ").ok_or("no HELP")?;
        let (name, _) = help.split_once(' ').ok_or("no name")?;
        if !seen.insert(name) {
            return Err(format!("{name} comes twice"));
        }
        let head = lines.next().and_then(|line| line.strip_prefix("# TYPE "));
        let (named, kind) = head.and_then(|l| l.split_once(' ')).ok_or("no TYPE")?;
        if named != name || !matches!(kind, "counter" | "gauge") {
            return Err(format!("wrong type of {name}: {head:?}"));
        }
        while let Some(sample) = lines.next_if(|line| !line.starts_with("# HELP ")) {
            let rest = sample.strip_prefix(name).ok_or("another family")?;
            let (labels, value) = parse_labels(rest)?;
            let value = value.strip_prefix(' ').ok_or("no space")?;
            value
                .parse::<f64>()
                .map_err(|e| format!("{value:?}: {e}"))?;
            let key = (name.to_owned(), labels);
            if found.insert(key, value.to_owned()).is_some() {
                return Err(format!("{sample} comes twice"));
            }
        }
    }
    Ok(found)
}

type Labels = Vec<(String, String)>;

fn parse_labels(text: &str) -> Result<(Labels, &str), String> {
    let mut labels = Vec::new();
    let Some(mut rest) = text.strip_prefix('{') else {
        return Ok((labels, text));
    };
    loop {
        let (name, after) = rest.split_once("=\"").ok_or("no label")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().ok_or("a label does not end")? {
                (_, '\\') => value.push(match chars.next().ok_or("nothing escaped")?.1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => return Err(format!("\\{c} is not an escape")),
                }),
                (at, '"') => break at + 1,
                (_, c) => value.push(c),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &after[end..];
        if let Some(value) = rest.strip_prefix('}') {
            return Ok((labels, value));
        }
        rest = rest.strip_prefix(',').ok_or("no comma")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_prometheus_refuses_are_refused() {
        let head = "# HELP a A.\n# TYPE a counter\n";
        for (text, why) in [
            ("a 1\n".to_owned(), "no HELP"),
            ("# HELP a A.\na 1\n".to_owned(), "no TYPE"),
            (format!("{head}a 1"), "does not end"),
            (format!("{head}a 1\n{head}a 2\n"), "a comes twice"),
            (format!("{head}a 1\na 2\n"), "a 2 comes twice"),
            (format!("{head}b 1\n"), "another family"),
            (format!("{head}a{{b=\"\\t\"}} 1\n"), "not an escape"),
            (format!("{head}a{{b=\"c\" 1\n"), "no comma"),
            (format!("{head}a x\n"), "invalid float"),
        ] {
            let refused = parse_metrics(&text);
            assert!(
                refused.as_ref().is_err_and(|error| error.contains(why)),
                "{text:?}: {refused:?}"
            );
        }
        assert!(parse_metrics(&format!("{head}a{{b=\"c\"}} 1\n")).is_ok());
    }
}
