//! As much of XML as the documents of routers need: the elements in their order, and the
//! text in them. Namespaces, attributes, comments and declarations are skipped.

/// A step through a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// An element begins; its name without prefix.
    Open(&'a str),
    /// An element ends.
    Close(&'a str),
    /// Text that is not blank, with its entities replaced.
    Text(String),
}

/// The steps through a document, up to the first place that cannot be read.
pub(super) struct Steps<'a> {
    rest: &'a str,
    /// The end of an element that was empty.
    pending: Option<&'a str>,
}

pub(super) fn steps(document: &str) -> Steps<'_> {
    Steps {
        rest: document,
        pending: None,
    }
}

impl<'a> Iterator for Steps<'a> {
    type Item = Step<'a>;

    fn next(&mut self) -> Option<Step<'a>> {
        if let Some(name) = self.pending.take() {
            return Some(Step::Close(name));
        }
        loop {
            let at = self.rest.find('<')?;
            let (text, rest) = self.rest.split_at(at);
            if !text.trim().is_empty() {
                self.rest = rest;
                return Some(Step::Text(unescape(text.trim())));
            }
            if let Some(data) = rest.strip_prefix("<![CDATA[") {
                let (text, rest) = data.split_once("]]>")?;
                self.rest = rest;
                if text.trim().is_empty() {
                    continue;
                }
                return Some(Step::Text(text.trim().to_owned()));
            }
            if let Some(comment) = rest.strip_prefix("<!--") {
                self.rest = comment.split_once("-->")?.1;
                continue;
            }
            let (tag, rest) = rest.get(1..)?.split_once('>')?;
            self.rest = rest;
            if tag.starts_with(['?', '!']) {
                continue;
            }
            if let Some(name) = tag.strip_prefix('/') {
                return Some(Step::Close(local_name(name)));
            }
            let name = local_name(tag);
            if tag.ends_with('/') {
                self.pending = Some(name);
            }
            return Some(Step::Open(name));
        }
    }
}

/// The name in a tag, without attributes and prefix.
fn local_name(tag: &str) -> &str {
    let name = tag.split(|c: char| c.is_ascii_whitespace() || c == '/');
    let name = name.into_iter().next().unwrap_or_default();
    name.rsplit(':').next().unwrap_or_default()
}

/// The text of the first element with this name.
pub(super) fn text_of(document: &str, name: &str) -> Option<String> {
    let mut steps = steps(document);
    steps.find(|step| *step == Step::Open(name))?;
    match steps.next()? {
        Step::Text(text) => Some(text),
        Step::Open(_) | Step::Close(_) => None,
    }
}

/// Replaces the five entities of XML; what is none stays.
fn unescape(text: &str) -> String {
    let mut out = text.to_owned();
    for (entity, character) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ] {
        out = out.replace(entity, character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn elements_and_text_are_found_in_their_order() {
        let document = "<?xml version=\"1.0\"?><!DOCTYPE x>\n<s:a xmlns:s=\"u\"><!-- <b> -->\
            <b/> <c d='1'> 1 &amp;lt; 2 </c><e><![CDATA[<f>]]></e></s:a>";
        let text = |text: &str| Step::Text(text.to_owned());
        let expected = [
            Step::Open("a"),
            Step::Open("b"),
            Step::Close("b"),
            Step::Open("c"),
            text("1 &lt; 2"),
            Step::Close("c"),
            Step::Open("e"),
            text("<f>"),
            Step::Close("e"),
            Step::Close("a"),
        ];
        assert_eq!(steps(document).collect::<Vec<_>>(), expected);
        assert_eq!(text_of(document, "e").as_deref(), Some("<f>"));
        assert_eq!(text_of(document, "b"), None);
        assert_eq!(text_of(document, "z"), None);
    }

    proptest! {
        #[test]
        fn any_text_has_an_end(document: String) {
            prop_assert!(steps(&document).count() <= 2 * document.len() + 1);
        }

        #[test]
        fn any_tags_have_an_end(document in "[<>/!\\-?a-c \\[\\]CDAT&;]{0,200}") {
            prop_assert!(steps(&document).count() <= 2 * document.len() + 1);
        }
    }
}
