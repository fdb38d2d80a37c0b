//! The address ranges that two policies distinguish.

use crate::selector::Selector;
use crate::span::{INTERNET, Span, TAILNET};

/// The ranges that selectors distinguish, without those of the tailnet itself,
/// where addresses belong to machines.
pub(super) fn ranges(selectors: &[Selector]) -> Vec<Span> {
    let mut cuts: Vec<Span> = Vec::new();
    for selector in selectors {
        match selector {
            Selector::Net(net) => cuts.push(Span::from(net)),
            Selector::Set(set) => cuts.extend(set.spans.iter()),
            _ => {}
        }
    }
    let public: Vec<Span> = INTERNET.iter().map(|named| named.span).collect();
    let mut out: Vec<Span> = Vec::new();
    for cut in cuts {
        let mut new = vec![cut];
        for known in std::mem::take(&mut out) {
            let mut inside = known;
            for outside in known.without(&cut) {
                out.push(outside);
                inside = inside.without(&outside).first().copied().unwrap_or(inside);
            }
            if known.overlaps(&cut) {
                out.push(inside);
                new = new.iter().flat_map(|part| part.without(&known)).collect();
            }
        }
        out.extend(new);
    }
    // The public and the private part of a range are different classes.
    let mut split = Vec::new();
    for span in out {
        let mut rest = vec![span];
        for named in &public {
            let mut private = Vec::new();
            for part in rest {
                if !part.overlaps(named) {
                    private.push(part);
                    continue;
                }
                let mut inside = part;
                for outside in part.without(named) {
                    inside = inside.without(&outside).first().copied().unwrap_or(inside);
                    private.push(outside);
                }
                split.push(inside);
            }
            rest = private;
        }
        split.extend(rest);
    }
    split.retain(|span| !TAILNET.iter().any(|named| named.span.contains(span)));
    split.sort_unstable();
    split.dedup();
    split
}
