//! Faults: what goes wrong in a world is done to it, and ends.
//!
//! # Not here: what goes wrong when (schedule.rs), how much damage is allowed (atlas.rs).

use std::time::Duration;

use noxu_log::Log;
use noxu_rep::core::node::Input;
use noxu_util::Vlsn;

use super::World;
use crate::disk::Rot;
use crate::embed::Embedded;
use crate::event::{Event, Host, Turn};
use crate::invariants::Violation;
use crate::schedule::FaultKind;

impl<E: Embedded> World<E> {
    pub(super) fn begin_fault(&mut self, number: usize) -> Result<Option<Host>, Violation> {
        let (_, fault) = self.schedule.faults[number].clone();
        let now = self.stage.now();
        let done = self.do_fault(number, &fault.kind)?;
        self.stage.trace.note(now, format_args!("fault {number}: {:?}, done: {done}", fault.kind));
        if done {
            self.coverage.count(fault.kind.name());
        }
        // What the node itself did is looked at as any step of it.
        Ok(match fault.kind {
            FaultKind::DropFront { host } => Some(host),
            _ => None,
        })
    }

    /// Does a fault; false if it means nothing now, or is not allowed.
    fn do_fault(&mut self, number: usize, kind: &FaultKind) -> Result<bool, Violation> {
        match kind {
            FaultKind::Kill { host, down } => {
                if !self.is_up(*host) {
                    return Ok(false);
                }
                self.take_down(*host, *down);
            }
            FaultKind::PowerLoss { host, down } => {
                if !self.is_up(*host) {
                    return Ok(false);
                }
                self.down_until.insert(*host, self.stage.now() + *down);
                self.power_off(*host);
            }
            FaultKind::CrashInside { host, calls, down } => {
                if !self.is_up(*host) {
                    return Ok(false);
                }
                self.down_until.insert(*host, self.stage.now() + *down);
                self.nodes[host.0].disk.lock().crash_in(*calls);
            }
            FaultKind::Close { host, .. } => {
                let Some(process) = &self.nodes[host.0].process else { return Ok(false) };
                process.life.handle(Input::Closing);
                self.nodes[host.0].leave(&mut self.stage);
                self.settle(*host)?;
            }
            FaultKind::Pause { host, lasts } => {
                if !self.is_up(*host) {
                    return Ok(false);
                }
                self.stage.pause(*host);
                self.ends_in(number, *lasts);
            }
            FaultKind::Partition { ways, lasts } => {
                for (from, to) in ways {
                    self.stage.network.block(*from, *to);
                }
                self.ends_in(number, *lasts);
            }
            FaultKind::SlowLine { from, to, lasts } => {
                self.stage.network.slow_down(*from, *to, true);
                self.ends_in(number, *lasts);
            }
            FaultKind::Reset { a, b } => self.stage.network.reset(*a, *b),
            FaultKind::LossBurst { lasts } => {
                self.stage.network.change_plan(|plan| plan.loss = 0.8);
                self.ends_in(number, *lasts);
            }
            FaultKind::SlowDisk { host, times, lasts } => {
                self.nodes[host.0].disk.lock().slow_down(*times);
                self.ends_in(number, *lasts);
            }
            FaultKind::Stall { host, lasts } => {
                let until = self.stage.now() + *lasts;
                self.nodes[host.0].disk.lock().stall_until(until);
            }
            FaultKind::Full { host, lasts } => {
                self.nodes[host.0].disk.lock().set_full(true);
                self.ends_in(number, *lasts);
            }
            FaultKind::BrokenSync { host, .. } => {
                if !self.is_up(*host) {
                    return Ok(false);
                }
                self.nodes[host.0].disk.lock().break_next_sync();
            }
            FaultKind::Rot { host, what, place } => return Ok(self.rot(*host, *what, *place)),
            FaultKind::LostMark { host, down } => {
                let marked = self.nodes[host.0].disk.lock().has_mark();
                if !self.is_up(*host) || !marked || !self.atlas.make_uncertain(*host) {
                    return Ok(false);
                }
                self.take_down(*host, *down);
                let lost = self.nodes[host.0].disk.lock().lose_mark();
                lost.expect("there is a mark");
                self.rotten.insert(*host);
            }
            FaultKind::DropFront { host } => {
                let Some(process) = &self.nodes[host.0].process else { return Ok(false) };
                if self.stage.is_paused(*host) {
                    return Ok(false);
                }
                let before = process.life.log().positions().anchor.vlsn;
                // What cannot be done now, as on a full disk, is no business of this fault.
                let dropped = process.life.drop_front(Vlsn::default());
                let done = dropped.is_ok_and(|through| through > before);
                if done {
                    self.coverage.count("log: front dropped");
                }
                return Ok(done);
            }
            FaultKind::Wipe { host, down } => {
                if !self.atlas.wipe(*host) {
                    return Ok(false);
                }
                if self.is_up(*host) {
                    self.stage.network.handle_killed(*host);
                    self.nodes[host.0].stop(&mut self.stage);
                }
                self.nodes[host.0].wipe();
                self.observer.handle_wiped(&mut self.watch, *host)?;
                self.boot_in(*host, *down);
            }
            FaultKind::WallStep { host, by_ms } => self.stage.clock_mut(*host).step_wall(*by_ms),
        }
        Ok(true)
    }

    fn ends_in(&mut self, number: usize, lasts: Duration) {
        self.stage.agenda.post_in(lasts, Event::Turn(None, Turn::FaultEnds(number)));
    }

    pub(super) fn end_fault(&mut self, number: usize) {
        let (_, fault) = self.schedule.faults[number].clone();
        self.stage.trace.note(self.stage.now(), format_args!("fault {number} ends"));
        match fault.kind {
            FaultKind::Pause { host, .. } => self.stage.go_on(host),
            FaultKind::Partition { ways, .. } => {
                for (from, to) in ways {
                    self.stage.network.free(from, to);
                }
            }
            FaultKind::SlowLine { from, to, .. } => self.stage.network.slow_down(from, to, false),
            FaultKind::LossBurst { .. } => {
                let loss = self.plan.net.loss;
                self.stage.network.change_plan(|plan| plan.loss = loss);
            }
            FaultKind::SlowDisk { host, .. } => self.nodes[host.0].disk.lock().slow_down(1),
            FaultKind::Full { host, .. } => self.nodes[host.0].disk.lock().set_full(false),
            FaultKind::Kill { .. }
            | FaultKind::PowerLoss { .. }
            | FaultKind::CrashInside { .. }
            | FaultKind::Close { .. }
            | FaultKind::Reset { .. }
            | FaultKind::Stall { .. }
            | FaultKind::BrokenSync { .. }
            | FaultKind::Rot { .. }
            | FaultKind::LostMark { .. }
            | FaultKind::DropFront { .. }
            | FaultKind::Wipe { .. }
            | FaultKind::WallStep { .. } => {}
        }
    }

    /// Damages a disk, as far as the atlas allows.
    fn rot(&mut self, host: Host, what: Rot, place: u64) -> bool {
        let Some(process) = &self.nodes[host.0].process else { return false };
        let disk = self.nodes[host.0].disk.lock();
        let Ok(Some(rotten)) = disk.find_rot(what, place) else { return false };
        let allowed = match what {
            Rot::SideFile => true,
            Rot::ControlSlot => self.atlas.damage_control(host),
            Rot::MarkSlot => self.atlas.make_uncertain(host),
            Rot::Entry | Rot::SegmentHeader => {
                let Some(segment) = rotten.segment else { return false };
                let whole = what == Rot::SegmentHeader;
                let offset = (!whole).then_some(rotten.offset as u32);
                match entries_at(process.life.log(), segment, offset) {
                    Some((first, last)) => self.atlas.damage(host, first, last),
                    None => false,
                }
            }
        };
        let done = allowed && disk.rot(&rotten).is_ok();
        if done {
            self.rotten.insert(host);
        }
        done
    }

    /// The second phase begins: faults stop, and everything comes back.
    pub(super) fn heal(&mut self) -> Result<(), Violation> {
        let now = self.stage.now();
        self.stage.trace.note(now, format_args!("faults stop"));
        self.healed = Some(now);
        self.stage.network.free_all();
        self.stage.network.change_plan(|plan| {
            (plan.loss, plan.repeat, plan.straggle, plan.garble) = (0.0, 0.0, 0.0, 0.0);
        });
        for host in self.plan.hosts() {
            {
                let mut disk = self.nodes[host.0].disk.lock();
                disk.set_full(false);
                disk.slow_down(1);
                disk.forget_faults();
            }
            self.stage.go_on(host);
            if let Some(process) = &mut self.nodes[host.0].process {
                process.scrubbed = false;
            }
            if !self.is_up(host) {
                self.down_until.remove(&host);
                self.boot(host)?;
            }
        }
        Ok(())
    }
}

/// The entries that suffer when a byte of a segment rots, with those that cannot be proven without
/// them; all of the segment if `offset` is `None`.
fn entries_at(log: &Log, segment: u32, offset: Option<u32>) -> Option<(Vlsn, Vlsn)> {
    let positions = log.positions();
    let (mut first, mut last) = (None, None);
    let mut vlsn = positions.anchor.vlsn.next();
    while vlsn <= positions.last {
        let Ok(Some((_, lsn))) = log.header(vlsn) else { return None };
        if lsn.segment() == segment && offset.is_none_or(|offset| lsn.offset() <= offset) {
            first = if offset.is_some() { Some(vlsn) } else { first.or(Some(vlsn)) };
            last = Some(vlsn);
        }
        vlsn = vlsn.next();
    }
    Some((first?.prev().max(Vlsn::new(1)), last?.next().next()))
}
