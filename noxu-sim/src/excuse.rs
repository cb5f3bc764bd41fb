//! Excuse: the lawful reasons for which a group does not become one again.
//!
//! Found by looking at everything at once, which no node can.

use std::collections::BTreeMap;
use std::fmt;

use crate::atlas::Atlas;
use crate::event::Host;
use crate::plan::Plan;

/// A lawful reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excuse {
    /// So many voters do not start with what is on their disks that the others are no quorum.
    TooManyRefused,
    /// So many voters lost their directories that the others elect nobody, or make nothing durable.
    TooManyWiped,
    /// Damaged entries are needed of a voter that is away for good.
    DamageNeedsTheAbsent,
}

impl fmt::Display for Excuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Excuse {
    /// Its name, for coverage.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooManyRefused => "excuse: too many voters refused to start",
            Self::TooManyWiped => "excuse: too many voters wiped",
            Self::DamageNeedsTheAbsent => "excuse: damage needs a voter that is away",
        }
    }

    /// The reason, if there is one.
    pub(crate) fn find(
        atlas: &Atlas,
        plan: &Plan,
        refused: &BTreeMap<Host, String>,
    ) -> Option<Self> {
        let gone = plan.voting().filter(|host| refused.contains_key(host)).count();
        let wiped = plan.voting().filter(|host| atlas.is_wiped(*host)).count();
        let needed = plan.q_rep.max(plan.q_elect);
        if gone > 0 && plan.voters - gone < needed {
            return Some(Self::TooManyRefused);
        }
        if wiped > 0 && plan.voters - wiped - gone < needed {
            return Some(Self::TooManyWiped);
        }
        let away = gone + wiped > 0;
        let damaged = plan.voting().any(|host| atlas.is_touched(host) && !atlas.is_wiped(host));
        (away && damaged).then_some(Self::DamageNeedsTheAbsent)
    }
}

#[cfg(test)]
mod tests {
    use noxu_util::Vlsn;

    use super::*;

    #[test]
    fn damage_alone_is_no_excuse_and_a_missing_quorum_is() {
        let mut plan = (0..).map(Plan::drawn).take(100).find(|plan| plan.voters == 3).unwrap();
        (plan.q_rep, plan.q_elect) = (2, 2);
        let mut atlas = Atlas::new(3, 2, 2);
        let mut refused = BTreeMap::new();
        assert_eq!(Excuse::find(&atlas, &plan, &refused), None);
        assert!(atlas.damage(Host(0), Vlsn::new(1), Vlsn::new(2)));
        assert_eq!(Excuse::find(&atlas, &plan, &refused), None);
        refused.insert(Host(1), "damaged".to_owned());
        assert_eq!(Excuse::find(&atlas, &plan, &refused), Some(Excuse::DamageNeedsTheAbsent));
        refused.insert(Host(0), "damaged".to_owned());
        assert_eq!(Excuse::find(&atlas, &plan, &refused), Some(Excuse::TooManyRefused));
        plan.q_elect = 3;
        plan.q_rep = 1;
        let mut atlas = Atlas::new(3, 3, 2);
        assert!(atlas.wipe(Host(2)));
        assert_eq!(Excuse::find(&atlas, &plan, &BTreeMap::new()), Some(Excuse::TooManyWiped));
    }
}
