//! Disk mending: what is damaged on this node's disk is taken back from other nodes while everything
//! goes on, whatever the node's role is.
//!
//! Two things are mended here, both from blocks of sealed segments, which any node gives over its restore
//! service (restore/provider.rs): damaged blocks of sealed segments, and entries that cannot be read of
//! segments that are not sealed here. All others that this node knows are asked, one after the other, the
//! master last, and then those that only the master knows: nodes without a vote that follow it.
//!
//! # What is believed
//! | damaged here | proof of what comes |
//! |---|---|
//! | a block of a sealed segment | the digest it had when this node sealed the segment, from the side file |
//! | one whose side file is lost too, or a segment without a file and a side file | the digest of the whole segment, which this node remembers: all of it is fetched |
//! | entries of a segment that is not sealed | the chain on both sides of them, in this node's log |
//!
//! Digests are never taken from peers, not from any number of them either. They are not needed: where
//! this node has forgotten the digest of a whole segment too, it was closed since, and its next open
//! found the segment without a side file, read it, and knows by its chain which entries are damaged. And
//! they would prove less: peers of which a quorum gave the wrong bytes would have given wrong digests.
//!
//! # Why it is safe at any time, on any node
//! 1. Only bytes that are proven to be those that were there are written, in the place where they were.
//!    So it is no matter who is master, in which term, or whom this node follows: the same entries are in
//!    the log before and after.
//! 2. No entry is cut off here. What nobody has stays damaged, and is settled by who may: an elected
//!    master before its term begins, a replica's master in their conversation.
//! 3. The log checks under its own lock that what is put back is damaged still, so an election or a
//!    conversation that mends at the same time harms nobody.
//! 4. What a crash leaves is argued where it is written (noxu-log: block_repair.rs, segment_copy.rs,
//!    repair.rs).
//!
//! It waits for peers and its own disk in a thread that is there only while something is due. It holds no
//! lock of the node meanwhile; what the log locks to put entries back is held for that alone.
//!
//! # Lock order
//! `state` and `book` are leaves. Events are told with neither held.
//!
//! # Not here: what is found and asked for when (core/damage.rs); entries that an election or a
//! conversation mends (core/repair.rs, driver/mending.rs).

mod asking;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use noxu_log::{DamagedBlock, Faulty, LogError};
use noxu_util::{GroupId, Name};
use parking_lot::{Condvar, Mutex};

use self::asking::{Asked, copy_segment, fetch_entries, replace_block};
use super::life::Life;
use crate::core::commits::Now;
use crate::core::damage::{DamageBook, DamageEvent, DamageReport, Damaged, FIRST_WAIT, Unmended};
use crate::core::node::Input;
use crate::error::Result;
use crate::net::channel::Channel;
use crate::net::dispatcher::RESTORE_SERVICE_NAME;
use crate::restore::block_fetch::BlockSource;

/// Most nodes that are asked in one round.
const MOST_PEERS: usize = 64;

/// What a life knows of its damage and of who is at it.
#[derive(Default)]
pub(super) struct DiskMending {
    book: Mutex<DamageBook>,
    state: Mutex<State>,
    /// Nobody is at it any more.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// Somebody is at it, or about to be.
    active: bool,
    /// There may be more, since they looked.
    again: bool,
    /// The life ends.
    over: bool,
    /// The connection that is waited for.
    channel: Option<Arc<dyn Channel>>,
    /// Sealed segments that somebody needs and could not read.
    needed: BTreeSet<u32>,
    /// When something of a segment was last mended, or is about to be: whoever could not read it and
    /// finds nothing damaged there now is to look again.
    touched: BTreeMap<u32, Now>,
}

impl Life {
    /// Something may be damaged, or somebody may have come who can mend it: has
    /// [`Life::mend_disk`] called, if nobody is at it.
    pub(super) fn request_disk_mending(&self) {
        {
            let mut state = self.disk_mending.state.lock();
            state.again = true;
            if state.active || state.over {
                return;
            }
            state.active = true;
        }
        self.around.mend_disk();
    }

    /// Mends what is due and can be had. Blocks as long as peers take; called where
    /// [`Surroundings::mend_disk`](super::life::Surroundings::mend_disk) says.
    pub fn mend_disk(&self) {
        loop {
            self.disk_mending.state.lock().again = false;
            while self.mend_what_is_due() {}
            let mut state = self.disk_mending.state.lock();
            if !state.again || state.over {
                state.active = false;
                break;
            }
        }
        self.disk_mending.idle.notify_all();
        if let Some(due) = self.disk_mending.book.lock().poll_timeout() {
            self.housekeeper.arm(due);
        }
    }

    /// Has it begun if it is due at `now`; returns when it is next. Who is at it arms that itself.
    pub(super) fn expire_disk_mending(&self, now: Now) -> Option<Now> {
        let due = self.disk_mending.book.lock().poll_timeout()?;
        if due > now {
            return Some(due);
        }
        self.request_disk_mending();
        None
    }

    /// Another node has come.
    pub(super) fn handle_peer_came(&self) {
        let due = {
            let mut book = self.disk_mending.book.lock();
            book.handle_peer(self.clock.now());
            book.poll_timeout()
        };
        if let Some(due) = due {
            self.housekeeper.arm(due);
        }
    }

    /// Asks everybody for all that is damaged, now, and waits for what comes of it.
    pub(crate) fn mend_disk_now(&self) {
        self.disk_mending.book.lock().hurry(self.clock.now(), |_| true);
        self.request_disk_mending();
        let mut state = self.disk_mending.state.lock();
        while state.active && !state.over {
            self.disk_mending.idle.wait(&mut state);
        }
    }

    /// What was found damaged on the disk, and what became of it.
    pub fn damage(&self) -> DamageReport {
        self.disk_mending.book.lock().report(self.clock.now())
    }

    /// Somebody needs a sealed segment and could not read it. True if it is damaged: then it is mended
    /// at once, and if nobody has it, its entries count as faulty. True too if it is just being mended, or has
    /// been after whoever could not read it looked.
    pub(super) fn mend_sealed(&self, segment: u32) -> bool {
        // Looking takes time, in which what was just mended would become what was mended long ago.
        let now = self.clock.now();
        // An open segment has no digests, and no other node has it sealed for certain.
        let Ok(damaged) = self.log.scrub_segment(segment) else { return false };
        if damaged.is_empty() {
            let touched = self.disk_mending.state.lock().touched.get(&segment).copied();
            let is_recent = touched.is_some_and(|at| now.saturating_sub(at) < FIRST_WAIT);
            if is_recent {
                self.applier.signal(); // it may be who looked
            }
            return is_recent;
        }
        self.disk_mending.state.lock().needed.insert(segment);
        self.request_disk_mending();
        true
    }

    /// A finished segment turned out to be damaged when it was to be sealed.
    pub(super) fn handle_unsealable(&self, segment: u32) {
        if self.peers_to_ask().is_empty() {
            return; // as it is left for who looks at the log
        }
        match self.log.examine(segment) {
            Ok(_) => self.request_disk_mending(),
            Err(why) => {
                tracing::error!(node = %self.config.name, segment, "not examined: {why}");
            }
        }
    }

    /// Whoever waits for a peer here is woken: the life ends.
    pub(super) fn stop_disk_mending(&self) {
        let channel = {
            let mut state = self.disk_mending.state.lock();
            state.over = true;
            state.channel.take()
        };
        self.disk_mending.idle.notify_all();
        if let Some(channel) = channel {
            channel.close();
        }
    }

    /// True if something was due.
    fn mend_what_is_due(&self) -> bool {
        let (blocks, runs) = (self.log.damaged_blocks(), self.log.faulty());
        let damaged: Vec<_> =
            blocks.iter().map(block_damaged).chain(runs.iter().map(entries_damaged)).collect();
        let (now, needed) = (self.clock.now(), self.disk_mending.state.lock().needed.clone());
        let (events, due) = {
            let mut book = self.disk_mending.book.lock();
            let events = book.take_stock(now, &damaged);
            book.hurry(now, |what| needed.contains(&what.segment()));
            (events, book.due(now))
        };
        self.tell_damage(events);
        if due.is_empty() || self.disk_mending.state.lock().over {
            return false;
        }
        self.ask_everybody(&due);
        self.settle_needed(&due);
        // It may have waited for just these. What is damaged still it meets again, and asks for again,
        // which comes to pass once in [`FIRST_WAIT`] at most.
        self.applier.signal();
        true
    }

    /// One round: each of the others is asked for what is left, also those that only these know.
    fn ask_everybody(&self, due: &[Damaged]) {
        let mut left: BTreeMap<Damaged, Unmended> =
            due.iter().map(|what| (*what, Unmended::Unreachable)).collect();
        let mut put_back_entries = false;
        let master = self.master_address();
        let mut peers = self.peers_to_ask();
        let mut next = 0;
        while let Some((from, address)) = peers.get(next).cloned() {
            if left.is_empty() || self.disk_mending.state.lock().over {
                break;
            }
            next += 1;
            let asked = self.attach(&address).and_then(|mut source| {
                self.add_peers(&mut peers, source.others());
                // A master that meets what it cannot mend makes way; nobody follows it with these.
                source.keep_doubts(master.as_ref() == Some(&address));
                for what in left.keys().copied().collect::<Vec<_>>() {
                    self.note_touched(what.segment());
                    match self.ask(&mut source, what)? {
                        Asked::Mended => {
                            left.remove(&what);
                            put_back_entries |= matches!(what, Damaged::Entries { .. });
                            self.note_touched(what.segment());
                            let told = self.disk_mending.book.lock().handle_mended(what, &from);
                            self.tell_damage(told);
                        }
                        Asked::Later => {
                            left.remove(&what);
                            self.disk_mending.book.lock().put_off(self.clock.now(), what);
                        }
                        Asked::Not(why) => {
                            let known = left.entry(what).or_insert(Unmended::Unreachable);
                            *known = why.max(known.clone());
                        }
                    }
                }
                Ok(())
            });
            self.disk_mending.state.lock().channel = None;
            if let Err(cause) = asked {
                tracing::debug!(node = %self.config.name, %from, "asked for damaged blocks: {cause}");
            }
        }
        for (what, why) in left {
            let told = self.disk_mending.book.lock().handle_failed(self.clock.now(), what, why);
            self.tell_damage(told);
        }
        if put_back_entries {
            // What they kept from being sealed.
            if let Err(cause) = self.log.seal_through(self.log.control().state().commit_floor) {
                tracing::debug!(node = %self.config.name, "not sealed: {cause}");
            }
        }
    }

    fn note_touched(&self, segment: u32) {
        let now = self.clock.now();
        self.disk_mending.state.lock().touched.insert(segment, now);
    }

    /// What is needed, was asked for and nobody gave is no matter of blocks any more: what can be read of
    /// its segment stays, and the rest counts as faulty, which an election or a conversation settles.
    fn settle_needed(&self, asked: &[Damaged]) {
        let asked: BTreeSet<u32> = asked.iter().map(Damaged::segment).collect();
        let settled: Vec<u32> = {
            let mut state = self.disk_mending.state.lock();
            let of_these = state.needed.intersection(&asked).copied().collect();
            state.needed.retain(|segment| !asked.contains(segment));
            of_these
        };
        let damaged: BTreeSet<u32> =
            self.log.damaged_blocks().iter().map(|block| block.segment).collect();
        for segment in settled.into_iter().filter(|segment| damaged.contains(segment)) {
            if !self.examine(segment) {
                self.around.post(Input::Unreadable);
            }
        }
    }

    /// The other nodes and where they are reached, in an order of this node's own, the master last.
    fn peers_to_ask(&self) -> Vec<(String, String)> {
        let mut peers: BTreeMap<String, String> = BTreeMap::new();
        peers.extend(self.config.peers.iter().map(|address| (address.clone(), address.clone())));
        if let Some(membership) = self.membership() {
            let voters = membership.electorate.voters.iter();
            peers.extend(voters.map(|voter| (voter.address.clone(), voter.name.to_string())));
        }
        let replicas = self.mastership().map(|master| master.replicas()).unwrap_or_default();
        peers.extend(replicas.into_iter().map(|one| (one.address, one.name.to_string())));
        let master = self.master_address();
        if let Some(master) = &master {
            peers.entry(master.clone()).or_insert_with(|| master.clone());
        }
        let own = self.config.name.to_string();
        peers.retain(|address, name| *address != self.address && *name != own);
        let mut peers: Vec<_> = peers.into_iter().map(|(address, name)| (name, address)).collect();
        peers.sort_by_key(|(_, address)| {
            (Some(address) == master.as_ref(), *address < self.address, address.clone())
        });
        peers
    }

    /// Adds the nodes among `others` that are not asked anyway, as long as these are few.
    fn add_peers(&self, peers: &mut Vec<(String, String)>, others: &[(Name, String)]) {
        for (name, address) in others {
            let is_own = *name == self.config.name || *address == self.address;
            let is_known =
                peers.iter().any(|known| known.1 == *address || known.0 == name.as_str());
            if !is_own && !is_known && peers.len() < MOST_PEERS {
                peers.push((name.to_string(), address.clone()));
            }
        }
    }

    fn attach(&self, address: &str) -> Result<BlockSource> {
        let group = self.group_id()?;
        let channel = self.around.dial(address, RESTORE_SERVICE_NAME, self.config.dial_timeout)?;
        {
            let mut state = self.disk_mending.state.lock();
            if state.over {
                channel.close();
            }
            state.channel = Some(Arc::clone(&channel));
        }
        BlockSource::attach(channel, group, &self.config.name)
    }

    fn group_id(&self) -> Result<GroupId> {
        let dir = self.log.dir();
        let group = self.log.group().map(|group| group.id);
        group.ok_or_else(|| LogError::NotFounded { dir: dir.to_owned() }.into())
    }

    /// Asks one peer for one thing.
    ///
    /// # Errors
    /// The connection's: the peer is not to be asked for anything more.
    fn ask(&self, source: &mut BlockSource, what: Damaged) -> Result<Asked> {
        match what {
            Damaged::Block { segment, block, .. } => {
                let all = self.log.damaged_blocks();
                let is_it =
                    |known: &&DamagedBlock| (known.segment, known.block) == (segment, block);
                let Some(known) = all.iter().find(is_it) else { return Ok(Asked::Later) };
                let sealed = self.log.sealed_segments();
                let sealed = sealed.iter().find(|sealed| sealed.number == segment);
                let Some(sealed) = sealed else { return Ok(Asked::Later) };
                if source.digest(segment) != Some(*sealed.digest.as_bytes()) {
                    return Ok(Asked::Not(Unmended::NobodyHasIt));
                }
                if known.expected.is_none() {
                    copy_segment(&self.log, source, segment)
                } else {
                    replace_block(&self.log, source, segment, block)
                }
            }
            Damaged::Entries { first, last, .. } => {
                let all = self.log.faulty();
                let is_it = |known: &&Faulty| (known.first, known.last) == (first, last);
                let Some(faulty) = all.iter().find(is_it) else { return Ok(Asked::Later) };
                if self.is_repairing() {
                    return Ok(Asked::Later);
                }
                fetch_entries(&self.log, source, faulty)
            }
        }
    }

    fn tell_damage(&self, events: impl IntoIterator<Item = DamageEvent>) {
        let node = &self.config.name;
        for event in events {
            match &event {
                // The log has said so of a block.
                DamageEvent::Found(Damaged::Block { .. }) => {}
                DamageEvent::Found(what) => tracing::error!(%node, "ALARM: damaged: {what}"),
                DamageEvent::Mended { what, from } => {
                    tracing::warn!(%node, %from, "mended: {what}");
                }
                DamageEvent::NotYet { what, why, again_in } => {
                    tracing::warn!(%node, "not mended yet: {what}: {why}; again in {again_in:?}");
                }
                DamageEvent::Over(what) => tracing::info!(%node, "no matter any more: {what}"),
            }
            self.around.tell_damage(event);
        }
    }
}

fn block_damaged(known: &DamagedBlock) -> Damaged {
    let DamagedBlock { segment, block, first, last, .. } = *known;
    Damaged::Block { segment, block, first, last }
}

fn entries_damaged(known: &Faulty) -> Damaged {
    Damaged::Entries { segment: known.segment, first: known.first, last: known.last }
}

#[cfg(test)]
mod tests;
