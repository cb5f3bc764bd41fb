//! StoreBackend: the door over a node's [`Store`].

use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use noxu_kv::{Batch, KvError, Store, Txn, Value};
use noxu_rep::{Durability, Node, Role};
use noxu_util::{Latencies, NULL_VLSN, Vlsn};

use super::backend::{
    Backend, BackendError, Committed, DurabilityName, InfoSection, PendingCommit, RoleReply,
    Transaction,
};

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
            KvError::OutcomeUnknown { vlsn } => Self::OutcomeUnknown { vlsn: vlsn.sequence() },
            KvError::Replication(_)
            | KvError::Stopped { .. }
            | KvError::ConsistencyTimeout { .. }
            | KvError::Table(_)
            | KvError::Io { .. } => Self::Unavailable { reason: error.to_string() },
            other => Self::Refused { reason: other.to_string() },
        }
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
        let status = self.node().status();
        let store = self.store.status();
        let line = |key: &str, value: String| (key.to_owned(), value);
        let vlsn = |vlsn: Vlsn| vlsn.sequence().to_string();
        let positions = &status.positions;
        let mut replication = vec![
            line("role", if status.role == Role::Master { "master" } else { "slave" }.to_owned()),
            line("noxu_role", status.role.to_string()),
            line("reason", status.reason),
            line("node", status.name.to_string()),
            line("incarnation", status.incarnation.to_string()),
            line("term", status.term.to_string()),
            line("master", status.master.unwrap_or_default()),
            line("dtvlsn", vlsn(status.dtvlsn)),
            line("visible_vlsn", vlsn(status.visible)),
            line("applied_vlsn", vlsn(status.applied)),
            line("commit_floor", vlsn(status.commit_floor)),
        ];
        if let Some(group) = &status.group {
            replication.push(line("group", group.name.to_string()));
            replication.push(line("group_id", group.id.to_string()));
            let members: Vec<_> = status.members.iter().map(ToString::to_string).collect();
            replication.push(line("members", members.join(",")));
        }
        replication.push(line("connected_slaves", status.replicas.len().to_string()));
        for (index, replica) in status.replicas.iter().enumerate() {
            replication.push(line(
                &format!("replica{index}"),
                format!(
                    "name={},address={},sent={},received={},durable={},applied={},lag_entries={},lag_ms={}",
                    replica.name,
                    replica.address,
                    vlsn(replica.sent),
                    vlsn(replica.acked.received),
                    vlsn(replica.acked.durable),
                    vlsn(replica.acked.applied),
                    replica.lag.entries,
                    replica.lag.time.as_millis(),
                ),
            ));
        }
        if let Some(syncup) = status.last_syncup {
            replication.push(line("syncup_matchpoint", vlsn(syncup.matchpoint)));
            replication.push(line("syncup_start", vlsn(syncup.start)));
            replication.push(line("syncup_round_trips", syncup.round_trips.to_string()));
        }
        if let Some(rollback) = status.last_rollback {
            replication.push(line("rollback_matchpoint", vlsn(rollback.matchpoint)));
            replication.push(line("rollback_entries", rollback.entries.to_string()));
            replication.push(line("rollback_round_trips", rollback.round_trips.to_string()));
            replication.push(line("rollback_lost_file", rollback.lost_file.display().to_string()));
        }
        if let Some(restore) = status.restore {
            replication.push(line("restore_phase", format!("{:?}", restore.phase)));
            replication.push(line(
                "restore_blocks",
                format!("{} of {}", restore.blocks_done, restore.blocks_total),
            ));
            replication.push(line("restore_blocks_reused", restore.blocks_reused.to_string()));
            replication.push(line("restore_bytes_fetched", restore.bytes_fetched.to_string()));
        }
        if let Some(restored) = status.last_restore {
            replication.push(line("restored_anchor", vlsn(restored.anchor)));
            replication.push(line("restored_checkpoint", vlsn(restored.checkpoint)));
            replication.push(line("restored_segments", restored.segments.to_string()));
            replication.push(line("restored_last_vlsn", vlsn(restored.last)));
        }
        if let Some(error) = status.last_error {
            replication.push(line("last_error", error));
        }
        let sealed = self.node().log().sealed_segments();
        let mut log = vec![
            line("first_vlsn", vlsn(positions.first)),
            line("last_vlsn", vlsn(positions.last)),
            line("last_lsn", positions.last_lsn.to_string()),
            line("last_term", positions.last_term.to_string()),
            line("last_fingerprint", positions.last_fingerprint.to_string()),
            line("last_sync_vlsn", vlsn(positions.last_sync)),
            line("durable_vlsn", vlsn(positions.durable)),
            line("tail_mark", status.tail_mark.policy.to_string()),
            line("tail_mark_vlsn", vlsn(status.tail_mark.marked)),
            line("tail_mark_exempt", status.tail_mark.exempt().to_string()),
            line("data_sync_us", latencies(&status.sync_latencies.data)),
            line("mark_sync_us", latencies(&status.sync_latencies.mark)),
            line("read_only", status.read_only.unwrap_or_else(|| "no".to_owned())),
            line("anchor_vlsn", vlsn(positions.anchor.vlsn)),
            line("sealed_segments", sealed.len().to_string()),
            line(
                "sealed_bytes",
                sealed.iter().map(|s| u64::from(s.bytes)).sum::<u64>().to_string(),
            ),
        ];
        log.extend(retention_lines(&status.retention));
        let store = vec![
            line("applied_vlsn", vlsn(store.applied)),
            line("checkpoint_vlsn", vlsn(store.checkpoint)),
            line("oldest_readable_vlsn", vlsn(store.oldest_readable)),
            line("memtable_bytes", store.memtable_bytes.to_string()),
            line("disk_bytes", store.disk_bytes.to_string()),
            line("disk_files", store.disk_files.to_string()),
        ];
        vec![("Replication", replication), ("Log", log), ("Store", store)]
    }

    fn wait_applied(&self, vlsn: i64, timeout: Duration) -> Result<i64, BackendError> {
        self.store.wait_applied(Vlsn::new(vlsn.max(0)), timeout)?;
        Ok(self.node().applied().sequence())
    }

    fn checkpoint(&self) -> Result<i64, BackendError> {
        Ok(self.store.checkpoint()?.sequence())
    }

    fn drop_front(&self) -> Result<i64, BackendError> {
        let gone = self.node().drop_front(NULL_VLSN).map_err(KvError::from)?;
        Ok(gone.next().sequence())
    }
}

/// How much log is kept, why, and for whom.
fn retention_lines(retention: &noxu_rep::status::Retention) -> Vec<(String, String)> {
    let line = |key: &str, value: String| (key.to_owned(), value);
    let mut lines = vec![
        line("kept_bytes", retention.bytes.to_string()),
        line("kept_segments", retention.segments.to_string()),
        line("front_time_ms", retention.first_ms.unwrap_or(0).to_string()),
        line("front_held_by", retention.held_by.to_string()),
        line("lost_places", retention.lost_places.to_string()),
    ];
    for (index, place) in retention.holders.iter().enumerate() {
        let state = match (place.lost, place.is_away) {
            (Some(_), _) => "lost",
            (None, true) => "away",
            (None, false) => "held",
        };
        let from = place.from.sequence();
        let holder = &place.holder;
        lines.push(line(
            &format!("place{index}"),
            format!(
                "holder={holder},from={from},bytes_behind={},state={state}",
                place.bytes_behind
            ),
        ));
    }
    lines
}

/// "host:port" as two; `None` if it is not that.
/// Count, median and slow ones of what was timed, in microseconds.
fn latencies(of: &Latencies) -> String {
    let us = |quantile| of.quantile(quantile).as_micros();
    format!("count={},p50={},p99={},max={}", of.count(), us(0.5), us(0.99), us(1.0))
}

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
        let token = Self::wait(*self)?;
        Ok(Committed {
            vlsn: token.vlsn.sequence(),
            term: token.term.number(),
            fingerprint: token.fingerprint.as_u64(),
        })
    }
}
