//! The kit tested: the methods that ship with Noxu pass, broken ones do not.

mod broken;
pub(crate) mod keyed;

use std::sync::Arc;

use self::broken::{Break, Broken};
use self::keyed::Keyed;
use super::*;
use crate::sync::ranges::RangeSync;
use crate::sync::stream::StreamSync;

pub(crate) fn ranges() -> Arc<dyn StateSync> {
    Arc::new(RangeSync { piece_bytes: 2000, sync_bytes: 4000, parts: 8 })
}

pub(crate) fn snapshot() -> Arc<dyn StateSync> {
    Arc::new(StreamSync::SNAPSHOT.with_tuning(1500, 4000))
}

fn check(method: Arc<dyn StateSync>) {
    let report = run(&Keyed { method });
    assert!(report.passed(), "{report}");
}

#[test]
fn segments_conforms() {
    check(Arc::new(StreamSync::SEGMENTS.with_tuning(1500, 4000)));
}

#[test]
fn snapshot_conforms() {
    check(snapshot());
}

#[test]
fn ranges_conforms() {
    check(ranges());
}

/// Each with the checks that have to notice it.
#[test]
fn a_broken_method_does_not_conform() {
    let cases = [
        (Break::WholeTooEarly, "quiet copy"),
        (Break::TailIgnored, "quiet copy"),
        (Break::SavedBeforeSynced, "a crash at any call, two deep"),
        (Break::TakesAnyAnswer, "an answer is empty"),
        (Break::Hoards, "memory is bounded"),
        (Break::InstallsNothing, "quiet copy"),
        (Break::ReadiesTheFirst, "made ready as it comes"),
        (Break::InstallsAhead, "made ready as it comes"),
        (Break::TrustsItsDisk, "what came rots before it is installed"),
    ];
    for (bug, name) in cases {
        let method = Arc::new(Broken { bug });
        let report = run_some(&Keyed { method }, |check| check == name);
        assert_eq!(report.checks.len(), 1, "{name}");
        assert!(!report.passed(), "{bug:?} goes unnoticed: {report}");
    }
    // Without a bug the same method is right.
    let method = Arc::new(Broken { bug: Break::None });
    let report = run(&Keyed { method });
    assert!(report.passed(), "{report}");
}
