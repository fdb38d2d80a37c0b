//! The invariants of [`Compiled`], as numbered at the struct. Debug builds
//! check the cheap ones after every change; the property test checks all.

use std::collections::{BTreeMap, BTreeSet};

use super::Compiled;
use super::arena::Id;
use super::bits::Bits;
use super::rules::RuleKind;
use super::source::Source;

impl Compiled {
    /// Checks invariants 1 to 6, in time linear in the size of the tables.
    pub(super) fn check_tables(&self) {
        self.check_slots();
        self.check_ids();
        self.check_rules();
        self.check_merging();
    }

    fn check_slots(&self) {
        let present = &self.network.present;
        let within = |set: &Bits| set.and(present) == *set;
        let occupied: Bits = self.network.all().map(|(slot, _)| slot).collect();
        assert!(occupied == *present, "invariant 1: present slots");
        for (id, resolved) in self.selectors.iter() {
            let sets = [&resolved.holds, &resolved.serves];
            assert!(sets.into_iter().all(within), "invariant 1: selector {id:?}");
        }
        for (id, posture) in self.postures.iter() {
            assert!(within(&posture.passes), "invariant 1: posture {id:?}");
        }
        for (id, source) in self.sources.iter() {
            let sets = [&source.selected, &source.listed, &source.covered];
            assert!(sets.into_iter().all(within), "invariant 1: source {id:?}");
        }
        for (id, rule) in self.compiled_rules.iter() {
            assert!(within(&rule.reached), "invariant 1: rule {id:?}");
        }
    }

    fn check_ids(&self) {
        let selectors = self.selectors.iter();
        let selectors: Vec<_> = selectors
            .map(|(id, resolved)| (&resolved.selector, id))
            .collect();
        assert_eq!(
            selectors.into_iter().collect::<BTreeMap<_, _>>(),
            self.selector_ids
                .iter()
                .map(|(key, id)| (key, *id))
                .collect(),
            "invariant 2: selectors"
        );
        assert_eq!(
            self.selectors.iter().count(),
            self.selector_ids.len(),
            "invariant 2"
        );
        let postures = self.postures.iter();
        assert_eq!(
            postures
                .map(|(id, posture)| (&posture.names, id))
                .collect::<BTreeMap<_, _>>(),
            self.posture_ids
                .iter()
                .map(|(key, id)| (key, *id))
                .collect(),
            "invariant 2: postures"
        );
        assert_eq!(
            self.postures.iter().count(),
            self.posture_ids.len(),
            "invariant 2"
        );
        let key = |source: &Source| (source.selectors.clone(), source.posture);
        let sources = self.sources.iter();
        assert_eq!(
            sources
                .map(|(id, source)| (key(source), id))
                .collect::<BTreeMap<_, _>>(),
            self.source_ids,
            "invariant 2: sources"
        );
        assert_eq!(
            self.sources.iter().count(),
            self.source_ids.len(),
            "invariant 2"
        );
    }

    fn check_rules(&self) {
        let order: BTreeMap<_, _> = self.order.iter().copied().zip(0..).collect();
        assert_eq!(
            order, self.rank,
            "invariant 3: rank is the inverse of order"
        );
        assert_eq!(
            order.len(),
            self.order.len(),
            "invariant 3: a rule is ordered twice"
        );
        let file_rules: BTreeSet<_> = self.file_rules.iter().map(|(id, _)| id).collect();
        assert!(
            file_rules.iter().eq(order.keys()),
            "invariant 3: a rule is not ordered"
        );

        let mut of_file: BTreeMap<_, _> = BTreeMap::new();
        for (file_rule, entry) in self.file_rules.iter() {
            for (nth, id) in entry.compiled_rules.iter().enumerate() {
                let known = of_file.insert(*id, (file_rule, nth));
                assert!(known.is_none(), "invariant 4: {id:?} is in two file rules");
            }
        }
        let rules = self.compiled_rules.iter();
        assert_eq!(
            rules
                .map(|(id, rule)| (id, (rule.rule, rule.nth)))
                .collect::<BTreeMap<_, _>>(),
            of_file,
            "invariant 4: file rules"
        );
        let rules = self.compiled_rules.iter();
        let by_source = self
            .sources
            .iter()
            .flat_map(|(id, source)| source.compiled_rules.iter().map(move |rule| (*rule, id)));
        assert_eq!(
            rules
                .map(|(id, rule)| (id, rule.source))
                .collect::<BTreeSet<_>>(),
            by_source.collect(),
            "invariant 4: sources"
        );
    }

    fn check_merging(&self) {
        let mut groups: BTreeMap<u64, BTreeSet<Id<Source>>> = BTreeMap::new();
        for (id, source) in self.sources.iter() {
            groups.entry(source.fingerprint).or_default().insert(id);
        }
        assert_eq!(groups, self.by_fingerprint, "invariant 5");
        let mut ports = BTreeMap::new();
        for (_, rule) in self.compiled_rules.iter() {
            if let RuleKind::Ports { protocol, .. } = rule.kind {
                ports.insert((rule.source, protocol), ());
            }
        }
        assert!(
            ports.keys().eq(self.merge_targets.keys()),
            "invariant 6: pairs"
        );
        for ((source, protocol), (target, serial)) in &self.merge_targets {
            let equal = self.sources.get(*source).into_iter().flat_map(|source| {
                let group = self.by_fingerprint.get(&source.fingerprint);
                let group = group.into_iter().flatten();
                group.filter(|id| {
                    let other = self.sources.get(**id);
                    other.is_some_and(|other| other.is_same_on_wire(source))
                })
            });
            let rules = equal
                .filter_map(|id| self.sources.get(*id))
                .flat_map(|source| &source.compiled_rules)
                .filter_map(|id| Some((*id, self.compiled_rules.get(*id)?)))
                .filter(|(_, rule)| match rule.kind {
                    RuleKind::Ports { protocol: own, .. } => own == *protocol,
                    _ => false,
                });
            let first = rules.min_by_key(|(_, rule)| self.position(rule));
            let first = first.map(|(id, rule)| (id, rule.serial));
            assert_eq!(first, Some((*target, *serial)), "invariant 6: target");
        }
    }

    /// Checks invariant 7: computes every set again.
    #[cfg(test)]
    pub(super) fn check_sets(&self) {
        for (id, resolved) in self.selectors.iter() {
            let again = self.resolve(&resolved.selector);
            assert!(
                again.kind == resolved.kind
                    && again.holds == resolved.holds
                    && again.serves == resolved.serves,
                "invariant 7: selector {id:?}"
            );
        }
        for (id, posture) in self.postures.iter() {
            let again =
                super::posture::Posture::resolve(&posture.names, &self.policy, &self.network);
            assert!(
                again.passes == posture.passes,
                "invariant 7: posture {id:?}"
            );
            assert_eq!(
                again.lacking, posture.lacking,
                "invariant 7: posture {id:?}"
            );
        }
        for (id, source) in self.sources.iter() {
            let mut again = source.clone();
            let change = again.refresh_all(self.lookup());
            let same = change.selected.is_empty() && change.covered.is_empty() && !change.texts;
            assert!(same, "invariant 7: source {id:?}: {change:?}");
            again.update_fingerprint(self.lookup());
            assert!(
                again.is_same_on_wire(source),
                "invariant 7: fingerprint of {id:?}"
            );
        }
        for (id, rule) in self.compiled_rules.iter() {
            let again = self.lookup().reached(&rule.kind);
            assert!(again == rule.reached, "invariant 7: rule {id:?}");
        }
    }
}
