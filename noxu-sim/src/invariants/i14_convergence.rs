//! I14: once faults have stopped on a quorum, the group is one again: one master, and every node of
//! it has the same log and the same state.
//!
//! # Not here: waiting for it (the world), lawful reasons why not.

use noxu_util::{Fingerprint, Term, Vlsn};

use super::Violation;
use crate::event::Host;

/// How one node of the quorum ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEnd {
    /// Which.
    pub host: Host,
    /// Its term, if it is the established master.
    pub master_of: Option<Term>,
    /// End of its log.
    pub last: Vlsn,
    /// Hash of its whole log.
    pub fingerprint: Fingerprint,
    /// Everything through it is applied.
    pub applied: Vlsn,
    /// Digest of its state.
    pub state: u64,
}

/// Whether these nodes are one group.
///
/// # Errors
/// The first difference.
pub fn check(nodes: &[NodeEnd]) -> Result<(), Violation> {
    let wrong = |found: String| Err(Violation::new("I14", found));
    let masters: Vec<_> =
        nodes.iter().filter_map(|node| Some((node.host, node.master_of?))).collect();
    if masters.len() != 1 {
        return wrong(format!("masters at the end: {masters:?}"));
    }
    let Some((first, others)) = nodes.split_first() else { return Ok(()) };
    for other in others {
        let (a, b) = (first.host, other.host);
        if (first.last, first.fingerprint) != (other.last, other.fingerprint) {
            return wrong(format!(
                "the logs of {a} and {b} end at {} and {}",
                first.last, other.last
            ));
        }
        if first.applied != other.applied {
            return wrong(format!("{a} applied {}, {b} {}", first.applied, other.applied));
        }
        if first.state != other.state {
            return wrong(format!("the states of {a} and {b} differ at {}", first.applied));
        }
    }
    Ok(())
}
