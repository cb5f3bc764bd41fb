//! I6: every entry that is durable on a quorum has an intact copy, whatever was damaged.

use noxu_util::Vlsn;

use super::Violation;
use crate::atlas::Atlas;
use crate::ledger::Ledger;

/// Looks for a copy of every durable entry from `from` on that is synced and not damaged.
///
/// # Errors
/// The first entry without one.
pub fn check(ledger: &Ledger, atlas: &Atlas, from: Vlsn) -> Result<(), Violation> {
    let last = ledger.last_durable();
    let mut vlsn = from.max(Vlsn::new(1));
    while vlsn <= last {
        let durable = ledger.durable(vlsn);
        // Nobody asks a secondary for what voters have lost.
        let intact = ledger.logs().filter(|(host, _)| atlas.has_vote(*host)).any(|(host, log)| {
            // What the front has dropped is in a checkpoint.
            let held = log.at(vlsn).map_or(vlsn < log.last(), |held| Some(held) == durable);
            held && vlsn <= log.durable() && !atlas.is_damaged(host, vlsn)
        });
        if !intact {
            return Err(Violation::new(
                "I6",
                format!("{vlsn} is durable and nobody has it intact"),
            ));
        }
        vlsn = vlsn.next();
    }
    Ok(())
}
