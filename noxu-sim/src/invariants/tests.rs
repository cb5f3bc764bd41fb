use noxu_util::{Fingerprint, Name, Term, Vlsn};

use super::i14_convergence::NodeEnd;
use super::*;
use crate::atlas::Atlas;
use crate::event::Host;
use crate::ledger::Held;

const A: Host = Host(0);
const B: Host = Host(1);
const C: Host = Host(2);

fn vlsn(sequence: i64) -> Vlsn {
    Vlsn::new(sequence)
}

fn term(number: u32) -> Term {
    Term::new(number)
}

fn held(of: u32, fingerprint: u64) -> Held {
    Held { term: term(of), fingerprint: Fingerprint::from_u64(fingerprint) }
}

fn appended(host: Host, first: i64, under: u32, entries: &[Held]) -> Record {
    Record::Appended { host, first: vlsn(first), entries: entries.to_vec(), under: term(under) }
}

fn synced(host: Host, durable: i64) -> Record {
    Record::Synced { host, durable: vlsn(durable) }
}

fn established(host: Host, of: u32, first: i64) -> Record {
    Record::Established { host, epoch: 0, term: term(of), first: vlsn(first) }
}

fn dtvlsn(host: Host, of: u32, at: i64) -> Record {
    Record::Dtvlsn { host, term: term(of), vlsn: vlsn(at) }
}

fn acked(host: Host, of: u32, durable: i64) -> Record {
    Record::Acked { host, term: term(of), durable: vlsn(durable) }
}

/// A is master of term 1; entries 1 to 3 are on A and B, and durable.
fn lawful() -> Vec<Record> {
    let entries = [held(1, 11), held(1, 12), held(1, 13)];
    vec![
        appended(A, 1, 1, &entries[..1]),
        established(A, 1, 1),
        appended(A, 2, 1, &entries[1..]),
        synced(A, 3),
        appended(B, 1, 1, &entries),
        synced(B, 3),
        acked(B, 1, 3),
        dtvlsn(A, 1, 3),
    ]
}

/// The rule that the last of these breaks after the lawful beginning.
#[track_caller]
fn broken(records: &[Record]) -> Option<&'static str> {
    let mut watch = Watch::new([C]);
    for record in &lawful() {
        watch.enter(record).unwrap();
    }
    let (last, before) = records.split_last().unwrap();
    for record in before {
        watch.enter(record).unwrap_or_else(|violation| panic!("{record:?}: {violation}"));
    }
    watch.enter(last).err().map(|violation| violation.invariant)
}

#[test]
fn a_lawful_run_breaks_nothing() {
    assert_eq!(
        broken(&[
            established(B, 2, 4),
            appended(B, 4, 2, &[held(2, 24)]),
            Record::Truncated { host: A, after: vlsn(3) },
            appended(A, 4, 2, &[held(2, 24)]),
            synced(A, 4),
            acked(A, 2, 4),
            Record::Restarted { host: A, last: vlsn(4), amid: false, uncertain: false },
            appended(C, 1, 2, &[held(1, 11)]),
        ]),
        None
    );
}

#[test]
fn a_second_master_of_a_term_is_named_and_so_is_one_that_resumes() {
    assert_eq!(broken(&[established(B, 1, 4)]), Some("I1"));
    assert_eq!(broken(&[established(A, 1, 4)]), Some("I1"));
}

#[test]
fn two_entries_of_one_number_and_term_are_named() {
    assert_eq!(broken(&[appended(C, 1, 1, &[held(1, 99)])]), Some("I2"));
    let installed =
        Record::Installed { host: B, anchor: (vlsn(2), held(1, 12)), entries: vec![held(1, 99)] };
    assert_eq!(broken(&[installed]), Some("I2"));
}

#[test]
fn another_durable_entry_is_named() {
    let other = [held(1, 11), held(1, 12), held(2, 23), held(2, 24)];
    let host = Host(3);
    assert_eq!(broken(&[appended(host, 1, 2, &other), dtvlsn(host, 2, 4)]), Some("I3"));
    assert_eq!(broken(&[dtvlsn(A, 1, 9)]), Some("I3"), "nobody holds 9");
    assert_eq!(broken(&[dtvlsn(Host(4), 1, 1)]), Some("I3"), "who has no log");
}

#[test]
fn a_master_that_lacks_a_durable_entry_is_named() {
    let host = Host(3);
    let short = [held(1, 11), held(1, 12)];
    assert_eq!(broken(&[appended(host, 1, 1, &short), established(host, 2, 3)]), Some("I4"));
    let other = [held(1, 11), held(1, 12), held(2, 23)];
    assert_eq!(broken(&[appended(host, 1, 2, &other), established(host, 3, 4)]), Some("I4"));
}

#[test]
fn cutting_or_restoring_away_what_is_durable_is_named() {
    assert_eq!(broken(&[Record::Truncated { host: B, after: vlsn(2) }]), Some("I5"));
    let to = |last| Record::Installed {
        host: B,
        anchor: (vlsn(last), held(1, 10)),
        entries: Vec::new(),
    };
    assert_eq!(broken(&[to(2)]), Some("I5"));
    assert_eq!(broken(&[to(3)]), None);
    assert_eq!(
        broken(&[appended(A, 4, 1, &[held(1, 14)]), Record::Truncated { host: A, after: vlsn(3) }]),
        None
    );
}

#[test]
fn an_entry_whose_copies_are_all_damaged_or_gone_is_named() {
    let mut watch = Watch::default();
    for record in &lawful() {
        watch.enter(record).unwrap();
    }
    let mut atlas = Atlas::new(3, 2, 2);
    let check =
        |watch: &Watch, atlas: &Atlas| i06_intact_copy::check(watch.ledger(), atlas, vlsn(1));
    assert_eq!(check(&watch, &atlas), Ok(()));
    assert!(atlas.damage(A, vlsn(2), vlsn(2)));
    assert_eq!(check(&watch, &atlas), Ok(()));
    watch.enter(&Record::Wiped { host: B }).unwrap();
    assert_eq!(check(&watch, &atlas).unwrap_err().invariant, "I6");
    // Nobody would ask it.
    let secondary = Host(3);
    let whole = [held(1, 11), held(1, 12), held(1, 13)];
    watch.enter(&appended(secondary, 1, 1, &whole)).unwrap();
    watch.enter(&synced(secondary, 3)).unwrap();
    assert_eq!(check(&watch, &atlas).unwrap_err().invariant, "I6");
}

#[test]
fn a_broken_promise_is_named() {
    let spoke = |of| Record::Spoke { host: B, term: term(of) };
    assert_eq!(broken(&[spoke(3), spoke(2)]), Some("I7"));
    assert_eq!(broken(&[spoke(3), Record::Wiped { host: B }, spoke(2)]), None);
    let voted = |candidate: &str| Record::Voted {
        host: B,
        term: term(3),
        candidate: candidate.parse::<Name>().unwrap(),
    };
    assert_eq!(broken(&[voted("n1"), voted("n1")]), None);
    assert_eq!(broken(&[voted("n1"), voted("n3")]), Some("I7"));
    let uncertain = Record::Restarted { host: B, last: vlsn(2), amid: false, uncertain: true };
    assert_eq!(broken(&[uncertain]), None, "it knows");
    for amid in [false, true] {
        assert_eq!(
            broken(&[Record::Restarted { host: B, last: vlsn(2), amid, uncertain: false }]),
            Some("I7")
        );
    }
    let more = [appended(B, 4, 1, &[held(1, 14)]), synced(B, 4), acked(B, 1, 4)];
    let restarted = |amid| {
        [&more[..], &[Record::Restarted { host: B, last: vlsn(3), amid, uncertain: false }]]
            .concat()
    };
    assert_eq!(broken(&restarted(false)), Some("I7"));
    assert_eq!(broken(&restarted(true)), None, "it may have been cut");
    // A newer master's entry of that number.
    let durable = Record::Dtvlsn { host: A, term: term(2), vlsn: vlsn(4) };
    let elsewhere = [appended(A, 4, 2, &[held(2, 15)]), durable];
    let replaced = [&more[..], &elsewhere, &restarted(true)[more.len()..]].concat();
    assert_eq!(broken(&replaced), None, "another entry is durable");
    let nacked = Record::Nacked { host: B, asked_in: term(5), vlsn: vlsn(4) };
    let entry = [held(2, 24)];
    assert_eq!(broken(&[nacked.clone(), appended(B, 4, 4, &entry)]), Some("I7"));
    assert_eq!(broken(&[nacked, appended(B, 4, 5, &entry)]), None);
}

#[test]
fn what_is_applied_and_not_durable_is_named() {
    let applied = |host, at| Record::Applied { host, vlsn: vlsn(at) };
    assert_eq!(broken(&[applied(B, 3)]), None);
    assert_eq!(broken(&[applied(B, 4)]), Some("C5"));
    let wrote = [appended(A, 4, 1, &[held(1, 14)]), applied(A, 4)];
    assert_eq!(broken(&wrote), None, "it was master");
}

#[test]
fn a_false_acknowledgement_is_named() {
    assert_eq!(broken(&[appended(B, 4, 1, &[held(1, 14)]), acked(B, 1, 4)]), Some("I8"));
    assert_eq!(broken(&[acked(Host(4), 1, 1)]), Some("I8"));
    let parted =
        [appended(A, 4, 1, &[held(1, 14)]), appended(B, 4, 2, &[held(2, 24)]), synced(B, 4)];
    assert_eq!(broken(&[&parted[..], &[acked(B, 1, 4)]].concat()), Some("I8"));
    let other = Host(3);
    let deposed = [
        appended(A, 4, 1, &[held(1, 14)]),
        appended(other, 1, 1, &[held(1, 11), held(1, 12), held(1, 13), held(1, 14)]),
        synced(other, 4),
        established(B, 2, 4),
        appended(B, 4, 2, &[held(2, 24)]),
        Record::Truncated { host: A, after: vlsn(3) },
        appended(A, 4, 2, &[held(2, 24)]),
        acked(other, 1, 4),
    ];
    assert_eq!(broken(&deposed), None, "A is no master of term 1 any more");
}

#[test]
fn a_secondary_ahead_of_what_is_durable_is_named() {
    let entries = [held(1, 11), held(1, 12), held(1, 13), held(1, 14)];
    assert_eq!(broken(&[appended(C, 1, 1, &entries[..3])]), None);
    assert_eq!(broken(&[appended(C, 1, 1, &entries)]), Some("I11"));
}

#[test]
fn wrong_fingerprints_searches_and_sizes_are_named() {
    let verified =
        |wrong: Option<&str>| Record::Verified { host: A, wrong: wrong.map(str::to_owned) };
    assert_eq!(broken(&[verified(None)]), None);
    assert_eq!(broken(&[verified(Some("segment 3"))]), Some("I12"));
    let search = |found, round_trips| Record::SyncedUp {
        host: A,
        found: vlsn(found),
        known: vlsn(3),
        round_trips,
    };
    assert_eq!(broken(&[search(3, 4)]), None);
    assert_eq!(broken(&[search(2, 1)]), Some("I13"));
    assert_eq!(broken(&[search(3, 5)]), Some("I13"));
    let sized = |found| Record::Sized { host: A, what: "tail bytes", found, bound: 10 };
    assert_eq!(broken(&[sized(10)]), None);
    assert_eq!(broken(&[sized(11)]), Some("I15"));
}

#[test]
fn a_place_beyond_what_is_durable_or_before_the_front_is_named() {
    let held = |from, front, is_full| Record::Held {
        host: A,
        replica: B,
        from: vlsn(from),
        front: vlsn(front),
        is_full,
    };
    assert_eq!(broken(&[held(4, 1, false)]), None);
    assert_eq!(broken(&[held(5, 1, false)]), Some("P1"));
    assert_eq!(broken(&[held(5, 1, true)]), None, "it may be in its memory");
    assert_eq!(broken(&[held(5, 5, false)]), None, "there is nothing before that to be held");
    assert_eq!(broken(&[held(2, 1, false), held(2, 3, false)]), Some("P1"));
    let let_go = |needed, staged: Option<i64>| Record::LetGo {
        host: B,
        needed: vlsn(needed),
        staged: staged.map(vlsn),
    };
    assert_eq!(broken(&[let_go(9, Some(8)), held(9, 1, false)]), None);
    assert_eq!(broken(&[let_go(10, Some(8))]), Some("R1"));
}

#[test]
fn a_node_that_stops_though_its_disk_works_is_named() {
    let stopped =
        |disk_failed| Record::Stopped { host: A, cause: "no room".to_owned(), disk_failed };
    assert_eq!(broken(&[stopped(true)]), None);
    assert_eq!(broken(&[stopped(false)]), Some("S1"));
}

#[test]
fn a_group_that_is_not_one_is_named() {
    let end = |host: Host| NodeEnd {
        host,
        master_of: (host == A).then_some(term(4)),
        last: vlsn(9),
        fingerprint: Fingerprint::from_u64(9),
        applied: vlsn(9),
        state: 7,
    };
    let check = |change: &dyn Fn(&mut NodeEnd)| {
        let mut nodes = [end(A), end(B)];
        change(&mut nodes[1]);
        i14_convergence::check(&nodes).map_err(|violation| violation.invariant)
    };
    assert_eq!(check(&|_| ()), Ok(()));
    assert_eq!(check(&|node| node.master_of = Some(term(5))), Err("I14"));
    assert_eq!(check(&|node| node.last = vlsn(8)), Err("I14"));
    assert_eq!(check(&|node| node.fingerprint = Fingerprint::from_u64(8)), Err("I14"));
    assert_eq!(check(&|node| node.applied = vlsn(8)), Err("I14"));
    assert_eq!(check(&|node| node.state = 8), Err("I14"));
}
