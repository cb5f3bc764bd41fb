//! Offers: by which methods a node gives its state, and what it keeps of that for nodes whose connection
//! broke: one that returns soon goes on with the same offer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use noxu_log::Log;
use parking_lot::Mutex;

use super::fingerprint_at;
use crate::clock::Clock;
use crate::error::Result;
use crate::sync::method::{LogPart, Offer, Proof, StateSync, SyncNode, SyncProvider};
use crate::wire::restore::MethodId;

/// How long an offer stays for a node whose connection has ended.
const KEPT_FOR: Duration = Duration::from_mins(1);

/// Most offers kept for nodes that are away.
const MAX_KEPT: usize = super::MAX_SESSIONS;

/// What a node gives its state by.
pub struct StateOffers {
    clock: Clock,
    methods: Vec<Method>,
    kept: Mutex<BTreeMap<u64, (Duration, OpenOffer)>>,
}

/// A method of this node.
pub(super) struct Method {
    pub(super) id: MethodId,
    pub(super) log_part: LogPart,
    provider: Box<dyn SyncProvider>,
}

/// An offer that is open, for one session at a time.
pub(super) struct OpenOffer {
    method: usize,
    pub(super) offer: Offer,
    /// Of the entry that was there when it was opened.
    pub(super) proof: Proof,
}

impl StateOffers {
    /// By those of these methods that are for `node`; none is open yet.
    pub fn new(clock: Clock, methods: &[Arc<dyn StateSync>], node: &SyncNode) -> Self {
        let method = |method: &Arc<dyn StateSync>| Method {
            id: MethodId { name: method.name(), signature: method.signature() },
            log_part: method.log_part(),
            provider: method.provider(node),
        };
        let methods = methods.iter().filter(|method| method.is_for(&*node.machine)).map(method);
        let methods = methods.collect();
        Self { clock, methods, kept: Mutex::default() }
    }

    /// The place of a method, if this node has it in the same form.
    pub(super) fn find(&self, wanted: &MethodId) -> Option<usize> {
        self.methods.iter().position(|method| method.id == *wanted)
    }

    /// The method of that place.
    pub(super) fn method(&self, at: usize) -> &Method {
        &self.methods[at]
    }

    /// The offer `id` if it was kept, else a new one of the state as it is.
    pub(super) fn open(&self, log: &Log, method: usize, id: u64) -> Result<OpenOffer> {
        let provider = &self.methods[method].provider;
        if let Some(kept) = self.take(method, id)
            && let Some(offer) = provider.resume(id)
        {
            return Ok(OpenOffer { offer, ..kept });
        }
        loop {
            let before = log.rewrites();
            let offer = provider.open()?;
            let id = offer.id;
            let opened = fingerprint_at(log, offer.through).map(|fingerprint| {
                let proof = Proof { vlsn: offer.through, fingerprint };
                OpenOffer { method, offer, proof }
            });
            if opened.is_ok() && log.rewrites() == before {
                return opened;
            }
            provider.release(id);
            opened?;
        }
    }

    /// Answers a question about it.
    pub(super) fn read(
        &self,
        log: &Log,
        open: &OpenOffer,
        question: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<Proof> {
        let provider = &self.methods[open.method].provider;
        loop {
            let before = log.rewrites();
            answer.clear();
            let Some(vlsn) = provider.read(open.offer.id, question, answer)? else {
                return Ok(open.proof);
            };
            let proof = Proof { vlsn, fingerprint: fingerprint_at(log, vlsn)? };
            if log.rewrites() == before {
                return Ok(proof);
            }
        }
    }

    /// Nobody wants it any more.
    pub(super) fn release(&self, open: &OpenOffer) {
        self.methods[open.method].provider.release(open.offer.id);
    }

    /// Its node may return for it. Returns until when.
    pub(super) fn keep(&self, open: OpenOffer) -> Duration {
        let until = self.clock.now() + KEPT_FOR;
        let mut kept = self.kept.lock();
        if kept.len() >= MAX_KEPT
            && let Some(oldest) =
                kept.iter().min_by_key(|(_, (until, _))| *until).map(|(id, _)| *id)
            && let Some((_, oldest)) = kept.remove(&oldest)
        {
            self.release(&oldest);
        }
        kept.insert(open.offer.id, (until, open));
        until
    }

    fn take(&self, method: usize, id: u64) -> Option<OpenOffer> {
        self.expire();
        let mut kept = self.kept.lock();
        kept.get(&id).filter(|(_, open)| open.method == method)?;
        kept.remove(&id).map(|(_, open)| open)
    }

    /// Gives up those for which nobody has come. Returns when the next one goes.
    pub fn expire(&self) -> Option<Duration> {
        let now = self.clock.now();
        let mut kept = self.kept.lock();
        kept.retain(|_, (until, open)| {
            let is_due = *until <= now;
            if is_due {
                self.release(open);
            }
            !is_due
        });
        kept.values().map(|(until, _)| *until).min()
    }
}

#[cfg(test)]
mod tests {
    use noxu_log::env::{Env, MemoryEnv};

    use noxu_log::{EntryRun, LogConfig};
    use noxu_util::{NULL_VLSN, Vlsn};

    use super::*;
    use crate::sync::stream::StreamSync;
    use crate::sync::{Checkpoint, LogReader, MemoryCheckpoint, StateMachine};

    struct Text;

    impl StateMachine for Text {
        fn applied(&self) -> Vlsn {
            NULL_VLSN
        }

        fn apply(&self, _run: &EntryRun, _through: Vlsn) -> Result<()> {
            Ok(())
        }

        fn roll_back_to(&self, _matchpoint: Vlsn, _replay: &dyn LogReader) -> Result<()> {
            Ok(())
        }

        fn checkpoint(&self) -> Result<Vlsn> {
            Ok(NULL_VLSN)
        }

        fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
            Ok(Box::new(MemoryCheckpoint::new(NULL_VLSN, b"text".to_vec())))
        }

        fn install_checkpoint(&self, _: Vlsn, _: &mut dyn std::io::Read) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_offer_is_kept_a_minute_for_its_node_and_no_other() {
        let (clock, hand) = Clock::manual();
        let env: Arc<dyn Env> = Arc::new(MemoryEnv::new());
        let (log, _) = Log::open(Arc::clone(&env), "/n1".as_ref(), LogConfig::default()).unwrap();
        let machine = Arc::new(Text);
        let methods: [Arc<dyn StateSync>; 2] =
            [Arc::new(StreamSync::SEGMENTS), Arc::new(StreamSync::SNAPSHOT)];
        let offers = StateOffers::new(clock, &methods, &SyncNode { env, machine });
        let opened = offers.open(&log, 0, 0).unwrap();
        let id = opened.offer.id;
        offers.keep(opened);
        assert!(offers.take(0, id ^ 1).is_none() && offers.take(1, id).is_none());
        hand.set(Duration::from_secs(59));
        let again = offers.open(&log, 0, id).unwrap();
        assert_eq!(again.offer.id, id, "still there");
        offers.keep(again);
        hand.set(Duration::from_mins(2));
        assert_eq!(offers.expire(), None);
        assert!(offers.methods[0].provider.resume(id).is_none(), "released");
        assert_ne!(offers.open(&log, 0, id).unwrap().offer.id, id);
    }
}
