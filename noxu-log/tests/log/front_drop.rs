//! Dropping the front: whole sealed segments go, the anchor stays.

use noxu_log::LogError;
use noxu_util::{NULL_VLSN, Term, Vlsn};

use crate::support::{bodies, body, fresh, open, put};

#[test]
fn only_whole_sealed_segments_below_the_limit_go() {
    let (env, log) = fresh(4096);
    for n in 1..=300 {
        put(&log, 1 + n as u32 / 100, &body(n, 100));
    }
    log.sync_now().unwrap();
    assert_eq!(log.drop_front(Vlsn::new(300), |_| Vec::new()).unwrap(), NULL_VLSN);
    log.seal_through(Vlsn::new(200)).unwrap();
    let sealed = log.sealed_segments();
    let third = &sealed[2];
    let kept = log.drop_front(third.last, |at| vec![at.sequence() as u8]).unwrap();
    assert_eq!(kept, third.last);
    let check = |log: &noxu_log::Log| {
        let positions = log.positions();
        assert_eq!(positions.first, third.last.next());
        assert_eq!(positions.anchor.vlsn, third.last);
        assert_eq!(positions.anchor.group_config, [third.last.sequence() as u8][..]);
        assert_eq!(log.term_table()[0], (Term::new(2), third.last.next()).min(log.term_table()[0]));
        let gap = log.read(third.last, 100).unwrap_err();
        assert!(
            matches!(gap, LogError::Gap { requested, first }
            if requested == third.last && first == third.last.next()),
            "{gap}"
        );
        assert_eq!(log.header(third.last).unwrap(), None);
        assert_eq!(
            bodies(log, positions.first, 999).len() as u64,
            Vlsn::new(300).since(third.last)
        );
    };
    check(&log);
    log.close().unwrap();
    drop(log);
    let (log, _) = open(&env);
    check(&log);
    let names = env.list("/node/log".as_ref()).unwrap();
    assert!(!names.contains(&"0000000003.nlog".to_owned()), "{names:?}");
    assert!(!names.contains(&"0000000003.nside".to_owned()), "{names:?}");
    // Everything sealed may go, once it is known to be settled again.
    log.settle(Vlsn::new(200));
    let kept = log.drop_front(Vlsn::new(300), |_| Vec::new()).unwrap();
    assert!(kept <= Vlsn::new(200) && kept > third.last, "{kept}");
}
