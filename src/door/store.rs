//! StoreBackend: the door over a node's [`Store`].

use std::ops::{Bound, ControlFlow};
use std::time::Duration;

use bytes::Bytes;
use noxu_kv::{Batch, CommitToken, KvError, Store, Txn, Value};
use noxu_rep::status::ScrubProgress;
use noxu_rep::{CommitOutcome, Durability, Node, RepError, Role};
use noxu_util::{Fingerprint, NULL_VLSN, Term, Vlsn};

use super::backend::{
    Backend, BackendError, Committed, DurabilityName, InfoLine, InfoSection, PendingCommit,
    RoleReply, Transaction,
};
use super::info;

/// A store behind a door.
#[derive(Clone)]
pub struct StoreBackend {
    store: Store,
}

impl StoreBackend {
    /// Serves `store`.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    fn node(&self) -> &Node {
        self.store.node()
    }
}

impl From<DurabilityName> for Durability {
    fn from(name: DurabilityName) -> Self {
        match name {
            DurabilityName::Majority => Self::MAJORITY,
            DurabilityName::WriteMajority => Self::WRITE_MAJORITY,
            DurabilityName::NoSyncMajority => Self::NO_SYNC_MAJORITY,
            DurabilityName::All => Self::ALL,
            DurabilityName::Local => Self::LOCAL,
        }
    }
}

impl From<KvError> for BackendError {
    fn from(error: KvError) -> Self {
        match error {
            KvError::NotMaster { master } => Self::NotMaster { master },
            KvError::Conflict { newer, .. } => Self::Conflict { newer: newer.sequence() },
            KvError::InsufficientReplicas { connected, needed } => {
                Self::InsufficientReplicas { connected, needed }
            }
            KvError::OutcomeUnknown { token, .. } => {
                Self::OutcomeUnknown { commit: committed(token) }
            }
            KvError::Replication(_)
            | KvError::Stopped { .. }
            | KvError::NoState
            | KvError::ConsistencyTimeout { .. }
            | KvError::Table(_)
            | KvError::Io { .. } => Self::Unavailable { reason: error.to_string() },
            other => Self::Refused { reason: other.to_string() },
        }
    }
}

fn committed(token: CommitToken) -> Committed {
    Committed {
        vlsn: token.vlsn.sequence(),
        term: token.term.number(),
        fingerprint: token.fingerprint.as_u64(),
    }
}

fn bytes_of(value: &Value) -> Bytes {
    Bytes::copy_from_slice(value)
}

impl Backend for StoreBackend {
    fn read(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, BackendError> {
        if let [key] = keys {
            return Ok(vec![self.store.get(key)?.as_ref().map(bytes_of)]);
        }
        let snapshot = self.store.snapshot()?;
        let values = keys.iter().map(|key| Ok(snapshot.get(key)?.as_ref().map(bytes_of)));
        values.collect()
    }

    fn keys_after(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, BackendError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.store.snapshot()?.range::<&[u8]>((from, Bound::Unbounded))?;
        let keys = range.take(limit).map(|item| Ok(Bytes::copy_from_slice(&item?.0)));
        keys.collect()
    }

    fn count(&self) -> Result<u64, BackendError> {
        let mut count = 0;
        for item in self.store.snapshot()?.prefix(b"")? {
            item?;
            count += 1;
        }
        Ok(count)
    }

    fn begin(&self) -> Result<Box<dyn Transaction + '_>, BackendError> {
        Ok(Box::new(StoreTransaction { store: &self.store, work: Work::Blind(Batch::default()) }))
    }

    fn role(&self) -> RoleReply {
        let status = self.node().status();
        let last = status.positions.last.sequence();
        if status.role == Role::Master {
            let replicas = status.replicas.iter().map(|replica| {
                let (host, port) = split_address(&replica.address).unwrap_or_default();
                (host, port, replica.acked.durable.sequence())
            });
            return RoleReply::Master { last, replicas: replicas.collect() };
        }
        RoleReply::Replica {
            master: status.master.as_deref().and_then(split_address),
            connected: status.streaming,
            last,
        }
    }

    fn info(&self) -> Vec<InfoSection> {
        info::sections(&self.store)
    }

    fn wait_applied(&self, vlsn: i64, timeout: Duration) -> Result<i64, BackendError> {
        self.store.wait_applied(Vlsn::new(vlsn.max(0)), timeout)?;
        Ok(self.node().applied().sequence())
    }

    fn master(&self, timeout: Duration) -> Option<String> {
        self.node().wait_master(timeout)
    }

    fn outcome(&self, commit: Committed, timeout: Duration) -> Result<&'static str, BackendError> {
        let token = CommitToken {
            vlsn: Vlsn::new(commit.vlsn),
            term: Term::new(commit.term),
            fingerprint: Fingerprint::from_u64(commit.fingerprint),
        };
        Ok(match self.store.outcome(token, timeout)? {
            CommitOutcome::Durable => "durable",
            CommitOutcome::RolledBack => "rolled-back",
            CommitOutcome::Open => "open",
            CommitOutcome::Forgotten => "forgotten",
        })
    }

    fn checkpoint(&self) -> Result<i64, BackendError> {
        Ok(self.store.checkpoint()?.sequence())
    }

    fn drop_front(&self) -> Result<i64, BackendError> {
        let gone = self.node().drop_front(NULL_VLSN).map_err(KvError::from)?;
        Ok(gone.next().sequence())
    }

    fn scrub(
        &self,
        bytes_per_second: u64,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<InfoLine>, BackendError> {
        let progress = |_: &ScrubProgress| {
            if goes_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let came_of_it = self.node().scrub(bytes_per_second, progress).map_err(KvError::from)?;
        Ok(info::scrub_summary(&came_of_it))
    }

    fn restore(&self) -> Result<bool, BackendError> {
        self.node().request_restore().map_err(|cause| match cause {
            RepError::IsMaster { .. } => BackendError::Refused { reason: cause.to_string() },
            other => KvError::from(other).into(),
        })
    }
}

/// "host:port" as two; `None` if it is not that.
fn split_address(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    Some((host.to_owned(), port.parse().ok()?))
}

/// A transaction that becomes one of the store's with its first read: one that only writes depends
/// on nothing it read and conflicts with nobody.
struct StoreTransaction<'a> {
    store: &'a Store,
    work: Work,
}

enum Work {
    Blind(Batch),
    Reading(Box<Txn>),
}

impl StoreTransaction<'_> {
    fn reading(&mut self) -> Result<&mut Txn, BackendError> {
        if let Work::Blind(batch) = &self.work {
            let mut txn = self.store.begin()?;
            for (key, value) in batch.writes() {
                match value {
                    Some(value) => txn.put(key, value)?,
                    None => txn.delete(key)?,
                }
            }
            self.work = Work::Reading(Box::new(txn));
        }
        match &mut self.work {
            Work::Reading(txn) => Ok(txn),
            Work::Blind(_) => unreachable!("made reading above"),
        }
    }
}

impl Transaction for StoreTransaction<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, BackendError> {
        Ok(self.reading()?.get(key)?.as_ref().map(bytes_of))
    }

    fn put(&mut self, key: &Bytes, value: &Bytes) -> Result<(), BackendError> {
        match &mut self.work {
            Work::Blind(batch) => Ok(batch.put(key, value)?),
            Work::Reading(txn) => Ok(txn.put(key, value)?),
        }
    }

    fn delete(&mut self, key: &Bytes) -> Result<(), BackendError> {
        match &mut self.work {
            Work::Blind(batch) => Ok(batch.delete(key)?),
            Work::Reading(txn) => Ok(txn.delete(key)?),
        }
    }

    fn commit(
        self: Box<Self>,
        durability: DurabilityName,
    ) -> Result<Box<dyn PendingCommit>, BackendError> {
        let pending = match self.work {
            Work::Blind(batch) => self.store.submit(&batch, durability.into())?,
            Work::Reading(txn) => txn.submit(durability.into())?,
        };
        Ok(Box::new(pending))
    }
}

impl PendingCommit for noxu_kv::PendingCommit {
    fn wait(self: Box<Self>) -> Result<Committed, BackendError> {
        Ok(committed(Self::wait(*self)?))
    }
}
