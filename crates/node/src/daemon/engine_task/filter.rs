//! The packet filter in force, with its counters.

use warren_filter::{Count, Direction, DropReason, Without};
use warren_node_core::Engine;

use super::EngineTask;
use crate::localapi::filter::{Counted, FilterReport, RuleReport};

impl EngineTask {
    /// The packet filter in force.
    pub(in crate::daemon) fn filter_report(&self) -> FilterReport {
        filter_report(self.node.engine())
    }
}

fn counted(count: Count) -> Counted {
    Counted {
        packets: count.packets,
        bytes: count.bytes,
    }
}

pub(super) fn filter_report(engine: &Engine) -> FilterReport {
    let filter = engine.filter();
    let drops = |direction| {
        let all = DropReason::ALL.into_iter();
        all.map(|reason| (reason.name().to_owned(), filter.dropped(direction, reason)))
            .filter(|(_, count)| count.packets > 0)
            .map(|(name, count)| (name, counted(count)))
            .collect()
    };
    FilterReport {
        shields_up: engine.prefs().shields_up,
        rules: rules(engine).collect(),
        without_rule: Without::ALL
            .into_iter()
            .map(|why| {
                (
                    why.name().to_owned(),
                    counted(filter.passed_without_rule(why)),
                )
            })
            .filter(|(_, count)| count.packets > 0)
            .collect(),
        dropped_in: drops(Direction::In),
        dropped_out: drops(Direction::Out),
        problems: engine
            .filter_problems()
            .iter()
            .map(ToString::to_string)
            .collect(),
        compiled_bytes: filter.bytes() as u64,
    }
}

/// The rules of all filters, numbered as the engine numbers them.
pub(super) fn rules(engine: &Engine) -> impl Iterator<Item = RuleReport> + '_ {
    let named = engine
        .netmap()
        .filters
        .iter()
        .flat_map(|(name, rules)| rules.iter().map(move |rule| (name, rule)));
    named.enumerate().map(|(number, (name, rule))| RuleReport {
        number,
        filter: name.clone(),
        rule: rule.clone(),
        passed: counted(engine.filter().passed_by_rule(number)),
    })
}
