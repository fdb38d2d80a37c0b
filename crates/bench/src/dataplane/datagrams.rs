//! Datagrams sent one by one: at one rate, and the search for the highest rate
//! that gets through.

use std::time::Duration;

use serde_json::Value;

use super::drive::{Load, number};
use super::ends::Ends;
use super::measure::{Clock, Found, Spans};
use super::usage::{cores, machine};
use super::{check_interrupt, until};
use warren_lab::{LabError, PATIENCE};

const GIGA: f64 = 1e9;
/// Bytes of payload in each.
pub const DATAGRAM: usize = 1200;
/// The highest loss in percent of an attempt that passes.
const MAY_LOSE: f64 = 1.0;
/// Which part of what was asked the generator must have sent for an attempt
/// to say something about the tunnel.
const MUST_SEND: f64 = 0.95;

/// The result of sending datagrams at one rate.
pub struct Datagrams {
    /// Gbit/s that the generator handed over.
    sent: f64,
    /// Gbit/s that arrived.
    received: f64,
    /// Percent.
    lost: f64,
    /// Percent of all that came behind a later one.
    late: f64,
    /// Percent of all processors' time while they were sent.
    busy: f64,
    cpu: Found,
}

impl Datagrams {
    /// As figures.
    pub fn found(self) -> Found {
        let mut found = vec![
            ("sent", self.sent),
            ("rate", self.received),
            ("lost", self.lost),
            ("late", self.late),
        ];
        found.extend(self.cpu);
        found
    }
}

/// Sends at `rate` Gbit/s for `span`.
///
/// # Errors
/// When a generator fails, or after Ctrl-C.
pub fn udp(ends: &Ends, rate: f64, span: Duration) -> Result<Datagrams, LabError> {
    check_interrupt()?;
    let mut sink = Load::start(&ends.hosts[1], &["udp-sink".to_owned()])?;
    let arguments = [
        "udp-source".to_owned(),
        format!("{}:{}", ends.target, sink.port()),
        format!("{:.0}", rate * GIGA / 8.0),
        DATAGRAM.to_string(),
        span.as_millis().to_string(),
    ];
    let mut source = Load::start(&ends.hosts[0], &arguments)?;
    let (clock, busy) = (Clock::read(ends), machine());
    let sent = source.ask()?;
    // Datagrams in queues belong to the result: wait until no more arrive.
    let received = settled(&mut sink)?;
    let bytes = number(&received, "bytes")?;
    let cpu = clock.per_gigabyte(ends, bytes);
    let seconds = number(&sent, "seconds")?;
    let datagrams = number(&sent, "datagrams")?.max(1.0);
    let arrived = number(&received, "datagrams")?;
    Ok(Datagrams {
        sent: number(&sent, "bytes")? * 8.0 / seconds / GIGA,
        received: bytes * 8.0 / seconds / GIGA,
        lost: (1.0 - arrived / datagrams).max(0.0) * 100.0,
        late: number(&received, "late")? / arrived.max(1.0) * 100.0,
        busy: (machine() - busy) / (cores() * seconds) * 100.0,
        cpu,
    })
}

/// The sink's counts once they stand still.
///
/// # Errors
/// When it ends, or they never do.
pub fn settled(sink: &mut Load) -> Result<Value, LabError> {
    /// Looks without a new datagram, 10 ms apart, that make an end.
    const QUIET: u32 = 20;
    let mut last = Value::Null;
    let mut quiet = 0;
    until("the last datagram", PATIENCE, || {
        let now = sink.ask()?;
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        if quiet < QUIET {
            return Err(LabError::new("they still come"));
        }
        Ok(last.clone())
    })
}

/// Searches: up in large steps until datagrams are lost, then by halves. A
/// rate may fail once, since this machine does other things too. Processor time
/// is that of the best attempt.
///
/// # Errors
/// As [`udp`].
pub fn udp_max(ends: &Ends, spans: Spans) -> Result<Found, LabError> {
    const START: f64 = 0.4;
    const STEP: f64 = 1.6;
    const HALVINGS: usize = 4;
    const LEAST: f64 = 0.01;
    const ATTEMPTS: usize = 2;
    // Whether the attempt passes, and whether the generator kept up.
    let attempt = |rate: f64| -> Result<(Option<Datagrams>, bool), LabError> {
        let mut passed = None;
        for _ in 0..ATTEMPTS {
            let it = udp(ends, rate, spans.probe)?;
            let kept_up = it.sent >= MUST_SEND * rate;
            if it.lost < MAY_LOSE {
                keep(&mut passed, it);
                if kept_up {
                    return Ok((passed, true));
                }
            }
        }
        Ok((passed, false))
    };
    let (mut good, mut bad) = (None, None);
    let mut best = None;
    let mut rate = START;
    while good.is_none() || bad.is_none() {
        let (passed, kept_up) = attempt(rate)?;
        match passed {
            Some(it) => {
                keep(&mut best, it);
                good = Some(rate);
                if !kept_up {
                    // More cannot be offered from here: a limit of the generator.
                    let mut found = highest(best);
                    found.push(("generator_limit", 1.0));
                    return Ok(found);
                }
                rate *= STEP;
            }
            None => {
                bad = Some(rate);
                rate /= STEP;
            }
        }
        if rate < LEAST {
            return Ok(highest(best));
        }
    }
    if let (Some(mut good), Some(mut bad)) = (good, bad) {
        for _ in 0..HALVINGS {
            let middle = f64::sqrt(good * bad);
            match attempt(middle)?.0 {
                Some(it) => {
                    keep(&mut best, it);
                    good = middle;
                }
                None => bad = middle,
            }
        }
    }
    Ok(highest(best))
}

/// Keeps the one of which more arrived.
fn keep(best: &mut Option<Datagrams>, it: Datagrams) {
    if best.as_ref().is_none_or(|best| it.received > best.received) {
        *best = Some(it);
    }
}

fn highest(best: Option<Datagrams>) -> Found {
    let Some(best) = best else {
        return vec![("rate", 0.0)];
    };
    let mut found = vec![("rate", best.received), ("busy", best.busy)];
    found.extend(best.cpu);
    found
}
