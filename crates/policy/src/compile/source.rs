//! Sources of rules, resolved: the selected nodes, the text on the wire, and
//! the nodes whose packets match.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

use super::arena::Id;
use super::bits::{Bits, Slot};
use super::network::{Network, NodeEntry};
use super::posture::Posture;
use super::resolved::{ResolvedSelector, SelectorKind};
use super::tables::{CompiledRuleId, Lookup};
use crate::selector::Selector;
use crate::span::{Span, TAILNET, net_text};

/// The sources of one or several rules.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Ascending.
    pub(super) selectors: Vec<Id<ResolvedSelector>>,
    pub(super) posture: Id<Posture>,
    /// Nodes that are selected by identity (for `autogroup:self`).
    pub(super) selected: Bits,
    /// Nodes whose addresses are on the wire because of their identity.
    pub(super) listed: Bits,
    /// Nodes with an address or approved subnet route in the sources.
    pub(super) covered: Bits,
    /// Addresses that do not depend on the identity of a node, ascending by
    /// text.
    fixed: Vec<Fixed>,
    /// Whether all served subnets are among the sources.
    pub(super) with_routes: bool,
    /// The compiled rules with these sources.
    pub(super) compiled_rules: BTreeSet<CompiledRuleId>,
    /// Texts on the wire that are not addresses of nodes in `known`. Sources
    /// are equal if this, `known` and `selected` are equal.
    extra_texts: Vec<Arc<str>>,
    /// Nodes with all their addresses on the wire, if these are more than
    /// `listed`.
    known: Option<Bits>,
    /// Equal for sources that are equal on the wire and select the same nodes.
    pub(super) fingerprint: u64,
    /// The texts on the wire, computed on first use.
    texts: OnceLock<WireTexts>,
}

/// Sources as texts on the wire, and a hash that is equal for equal texts.
#[derive(Debug, Clone)]
pub(super) struct WireTexts {
    pub(super) texts: Arc<[Arc<str>]>,
    pub(super) hash: u64,
}

impl WireTexts {
    pub(super) fn new(texts: Vec<Arc<str>>) -> Self {
        let mut hasher = DefaultHasher::new();
        texts.hash(&mut hasher);
        Self {
            texts: texts.into(),
            hash: hasher.finish(),
        }
    }

    pub(super) fn strings(&self) -> Vec<String> {
        self.texts.iter().map(ToString::to_string).collect()
    }

    /// Whether these are the texts of a rule.
    pub(super) fn is(&self, texts: &[String]) -> bool {
        let own = self.texts.iter().map(AsRef::as_ref);
        own.eq(texts.iter().map(String::as_str))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Fixed {
    text: Arc<str>,
    spans: Vec<Span>,
}

/// The result of a refresh.
#[derive(Debug, Default)]
pub(super) struct SourceChange {
    pub(super) selected: Vec<Slot>,
    pub(super) covered: Vec<Slot>,
    /// Whether the texts on the wire changed.
    pub(super) texts: bool,
    /// Whether it may be equal to other sources now.
    pub(super) group: bool,
}

impl<'a> Lookup<'a> {
    fn posture(self, source: &Source) -> Option<&'a Posture> {
        self.postures.get(source.posture)
    }

    fn all_pass(self, source: &Source) -> bool {
        self.posture(source).is_none_or(Posture::all_pass)
    }

    fn selectors_of(
        self,
        source: &Source,
    ) -> impl Iterator<Item = &'a ResolvedSelector> + use<'a, '_> {
        let ids = source.selectors.iter();
        ids.filter_map(move |id| self.selectors.get(*id))
    }
}

impl Source {
    pub(super) fn new(
        selectors: Vec<Id<ResolvedSelector>>,
        posture: Id<Posture>,
        from: Lookup<'_>,
    ) -> Self {
        let mut out = Self {
            selectors,
            posture,
            selected: Bits::default(),
            listed: Bits::default(),
            covered: Bits::default(),
            fixed: Vec::new(),
            with_routes: false,
            compiled_rules: BTreeSet::new(),
            extra_texts: Vec::new(),
            known: None,
            fingerprint: 0,
            texts: OnceLock::new(),
        };
        let with_routes = from
            .selectors_of(&out)
            .any(|resolved| resolved.kind == SelectorKind::Any);
        out.with_routes = with_routes;
        out.refresh_all(from);
        out.update_fingerprint(from);
        out
    }

    /// Evaluates all nodes.
    pub(super) fn refresh_all(&mut self, from: Lookup<'_>) -> SourceChange {
        let mut fixed = self.fix(from);
        fixed.sort_unstable();
        fixed.dedup();
        let (mut selected, mut listed) = (Bits::default(), Bits::default());
        let all_pass = from.all_pass(self);
        for resolved in from.selectors_of(self) {
            if resolved.is_identity() {
                listed.unite(&resolved.holds);
            } else if resolved.kind == SelectorKind::Any {
                selected.unite(&from.network.present);
                if !all_pass {
                    listed.unite(&from.network.present);
                }
            }
        }
        selected.unite(&listed);
        if let Some(posture) = from.posture(self).filter(|posture| !posture.all_pass()) {
            selected.intersect(&posture.passes);
            listed.intersect(&posture.passes);
        }
        let plain = |this: &Self| {
            this.fixed
                .iter()
                .map(|f| f.text.clone())
                .collect::<Vec<_>>()
        };
        let before = plain(self);
        self.fixed = fixed;
        let mut covered = from.network.over(&listed);
        if self.with_routes {
            covered.unite(&from.network.behind);
        }
        if all_pass {
            for resolved in from.selectors_of(self) {
                match &resolved.kind {
                    SelectorKind::Any => covered.unite(&from.network.in_tailnet),
                    SelectorKind::DangerAll => covered.unite(&from.network.anywhere),
                    SelectorKind::Addresses(..) => {
                        covered.unite(&resolved.holds);
                        covered.unite(&resolved.serves);
                    }
                    _ => {}
                }
            }
        } else {
            let spans: Vec<Span> = self.fixed.iter().flat_map(|f| &f.spans).copied().collect();
            let (holds, serves) = from.network.touching(&spans);
            covered.unite(&holds);
            covered.unite(&serves);
        }
        let toggled = SourceChange {
            selected: self.selected.difference(&selected).iter().collect(),
            covered: self.covered.difference(&covered).iter().collect(),
            texts: self.listed != listed || before != plain(self),
            group: false,
        };
        (self.selected, self.listed, self.covered) = (selected, listed, covered);
        self.selected.shrink();
        self.listed.shrink();
        self.covered.shrink();
        toggled
    }

    /// Evaluates some nodes again. Facts that do not depend on single nodes
    /// must be unchanged.
    pub(super) fn refresh(&mut self, slots: &[Slot], from: Lookup<'_>) -> SourceChange {
        let mut toggled = SourceChange::default();
        let all_pass = from.all_pass(self);
        for &slot in slots {
            let there = from.network.present.get(slot);
            let passes = all_pass || from.posture(self).is_some_and(|p| p.passes.get(slot));
            let means = from
                .selectors_of(self)
                .any(|resolved| resolved.is_identity() && resolved.holds.get(slot));
            let selected = there && passes && (means || self.with_routes);
            let listed = selected && (means || !all_pass);
            if self.selected.assign(slot, selected) {
                toggled.selected.push(slot);
            }
            toggled.texts |= self.listed.assign(slot, listed);
        }
        // Coverage of a node depends on other listed nodes, so it is computed
        // after them.
        for &slot in slots {
            let covered = from.network.is_over(slot, &self.listed)
                || (self.with_routes && from.network.behind.get(slot))
                || self.covers_fixed(slot, all_pass, from);
            if self.covered.assign(slot, covered) {
                toggled.covered.push(slot);
            }
        }
        toggled
    }

    fn covers_fixed(&self, slot: Slot, all_pass: bool, from: Lookup<'_>) -> bool {
        if all_pass {
            return from
                .selectors_of(self)
                .any(|resolved| match &resolved.kind {
                    SelectorKind::Any => from.network.in_tailnet.get(slot),
                    SelectorKind::DangerAll => from.network.anywhere.get(slot),
                    SelectorKind::Addresses(..) => {
                        resolved.holds.get(slot) || resolved.serves.get(slot)
                    }
                    _ => false,
                });
        }
        let mut spans = self.fixed.iter().flat_map(|fixed| &fixed.spans);
        from.network
            .get(slot)
            .is_some_and(|own| spans.any(|span| own.touches(span)))
    }

    /// Recomputes the fingerprint after a change of the texts or of the
    /// selected nodes.
    pub(super) fn update_fingerprint(&mut self, from: Lookup<'_>) {
        self.texts = OnceLock::new();
        self.known = self.also_known(from);
        let known = self.known();
        let is_known =
            |span: &Span| span.is_single() && from.network.inside(span).any(|slot| known.get(slot));
        let fixed = self.fixed.iter();
        let fixed = fixed.filter(|fixed| !fixed.spans.iter().all(is_known));
        let mut extra_texts: Vec<Arc<str>> = fixed.map(|fixed| fixed.text.clone()).collect();
        if self.with_routes {
            let routes = from.network.routes();
            let routes = routes.filter(|(route, _)| !is_known(&Span::from(*route)));
            extra_texts.extend(routes.map(|(_, text)| text.clone()));
            extra_texts.sort_unstable();
            extra_texts.dedup();
        }
        let mut hasher = DefaultHasher::new();
        known.fingerprint().hash(&mut hasher);
        self.selected.fingerprint().hash(&mut hasher);
        extra_texts.hash(&mut hasher);
        self.fingerprint = hasher.finish();
        self.extra_texts = extra_texts;
    }

    fn known(&self) -> &Bits {
        self.known.as_ref().unwrap_or(&self.listed)
    }

    /// With `*`, nodes are selected that are not listed; the addresses of some
    /// may still be on the wire because the rule names them.
    fn also_known(&self, from: Lookup<'_>) -> Option<Bits> {
        if !self.with_routes {
            return None;
        }
        let singles: BTreeSet<Span> = self
            .fixed
            .iter()
            .flat_map(|fixed| &fixed.spans)
            .copied()
            .filter(Span::is_single)
            .collect();
        let owners = singles.iter().flat_map(|span| from.network.inside(span));
        let mut known = self.listed.clone();
        for slot in owners.filter(|slot| self.selected.get(*slot)) {
            let own = from.network.get(slot);
            if own.is_some_and(|own| own.spans.iter().all(|span| singles.contains(span))) {
                known.insert(slot);
            }
        }
        (!singles.is_empty()).then_some(known)
    }

    /// Whether both are equal on the wire and select the same nodes, so that
    /// their rules are merged.
    pub(super) fn is_same_on_wire(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
            && self.extra_texts == other.extra_texts
            && self.selected == other.selected
            && self.known() == other.known()
    }

    /// Whether the fixed addresses may contain those of the node only because
    /// it has the posture.
    pub(super) fn depends_on_posture_of(&self, slot: &NodeEntry, from: Lookup<'_>) -> bool {
        from.selectors_of(self)
            .any(|resolved| resolved.has_address_of(slot))
    }

    /// The texts on the wire: ascending, without duplicates.
    pub(super) fn texts(&self, network: &Network) -> &WireTexts {
        self.texts.get_or_init(|| {
            let mut out = self.extra_texts.clone();
            let known = self.known();
            let known = known.iter().filter_map(|slot| network.get(slot));
            out.extend(known.flat_map(|own| own.texts.iter().cloned()));
            out.sort_unstable();
            out.dedup();
            WireTexts::new(out)
        })
    }

    /// Whether packets from somewhere in the range may match.
    pub(super) fn overlaps(&self, span: &Span, network: &Network) -> bool {
        let mut fixed = self.fixed.iter().flat_map(|fixed| &fixed.spans);
        fixed.any(|own| own.overlaps(span))
            || (self.with_routes && network.any_route_overlaps(span))
            || network.inside(span).any(|slot| self.listed.get(slot))
    }

    /// The addresses that do not depend on the identity of a node.
    fn fix(&self, from: Lookup<'_>) -> Vec<Fixed> {
        let all_pass = from.all_pass(self);
        let mut out = Vec::new();
        for resolved in from.selectors_of(self) {
            match &resolved.kind {
                SelectorKind::Any if all_pass => out.extend(
                    TAILNET
                        .iter()
                        .map(|named| fixed(named.text, vec![named.span])),
                ),
                SelectorKind::DangerAll if all_pass => out.push(fixed("*", Span::ALL.to_vec())),
                SelectorKind::DangerAll => out.extend(self.passing(&Span::ALL, from)),
                SelectorKind::Addresses(spans, _) if all_pass => {
                    if let Selector::Net(net) = &resolved.selector {
                        out.push(fixed(&net_text(net), spans.clone()));
                    } else {
                        out.extend(spans.iter().map(|span| fixed(&span.text(), vec![*span])));
                    }
                }
                SelectorKind::Addresses(spans, _) => out.extend(self.passing(spans, from)),
                _ => {}
            }
        }
        out
    }

    /// Ranges without the addresses of nodes that lack the posture. If there
    /// are such nodes, the tailnet's own ranges are replaced by the addresses
    /// of the other nodes.
    fn passing(&self, spans: &[Span], from: Lookup<'_>) -> Vec<Fixed> {
        let one = |span: Span| fixed(&span.text(), vec![span]);
        let passes = |slot: Slot| from.posture(self).is_none_or(|p| p.passes.get(slot));
        let mut out = Vec::new();
        for span in spans {
            if from.network.inside(span).all(passes) {
                out.push(one(*span));
                continue;
            }
            let ranges = TAILNET.iter().fold(vec![*span], |left, named| {
                left.iter()
                    .flat_map(|part| part.without(&named.span))
                    .collect()
            });
            out.extend(ranges.into_iter().map(one));
            let inside = from.network.addresses_inside(span);
            let passing = inside.filter(|(_, slot)| passes(*slot));
            out.extend(passing.map(|(address, _)| one(address)));
        }
        out
    }
}

fn fixed(text: &str, spans: Vec<Span>) -> Fixed {
    Fixed {
        text: text.into(),
        spans,
    }
}
