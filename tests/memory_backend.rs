//! A backend of the door that is a map: what a store promises, with hooks to watch it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use noxu::door::{
    Backend, BackendError, Committed, DurabilityName, InfoSection, PendingCommit, RoleReply,
    Transaction,
};
use parking_lot::Mutex;

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) map: BTreeMap<Bytes, Bytes>,
    pub(crate) vlsn: i64,
    /// Durability of each commit, in order.
    pub(crate) commits: Vec<DurabilityName>,
    /// For each wait: how many commits had been submitted when it began.
    pub(crate) waits: Vec<usize>,
    /// Conflicts to answer before commits succeed.
    pub(crate) conflicts: usize,
    /// Address of the master; this node is then a replica.
    pub(crate) master: Option<String>,
}

/// A store in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryBackend {
    pub(crate) state: Arc<Mutex<State>>,
}

struct MapTransaction {
    state: Arc<Mutex<State>>,
    writes: BTreeMap<Bytes, Option<Bytes>>,
}

struct MapCommit {
    state: Arc<Mutex<State>>,
    vlsn: i64,
}

impl PendingCommit for MapCommit {
    fn wait(self: Box<Self>) -> Result<Committed, BackendError> {
        let mut state = self.state.lock();
        let submitted = state.commits.len();
        state.waits.push(submitted);
        Ok(Committed { vlsn: self.vlsn, term: 1, fingerprint: 0xabc })
    }
}

impl Transaction for MapTransaction {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, BackendError> {
        if let Some(own) = self.writes.get(key) {
            return Ok(own.clone());
        }
        Ok(self.state.lock().map.get(key).cloned())
    }

    fn put(&mut self, key: &Bytes, value: &Bytes) -> Result<(), BackendError> {
        self.writes.insert(key.clone(), Some(value.clone()));
        Ok(())
    }

    fn delete(&mut self, key: &Bytes) -> Result<(), BackendError> {
        self.writes.insert(key.clone(), None);
        Ok(())
    }

    fn commit(
        self: Box<Self>,
        durability: DurabilityName,
    ) -> Result<Box<dyn PendingCommit>, BackendError> {
        let mut state = self.state.lock();
        if self.writes.is_empty() {
            return Ok(Box::new(MapCommit { state: self.state.clone(), vlsn: 0 }));
        }
        if state.master.is_some() {
            return Err(BackendError::NotMaster { master: state.master.clone() });
        }
        if state.conflicts > 0 {
            state.conflicts -= 1;
            return Err(BackendError::Conflict { newer: state.vlsn });
        }
        for (key, value) in self.writes {
            match value {
                Some(value) => state.map.insert(key, value),
                None => state.map.remove(&key),
            };
        }
        state.vlsn += 1;
        state.commits.push(durability);
        let vlsn = state.vlsn;
        Ok(Box::new(MapCommit { state: self.state.clone(), vlsn }))
    }
}

impl Backend for MemoryBackend {
    fn read(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, BackendError> {
        let state = self.state.lock();
        Ok(keys.iter().map(|key| state.map.get(key).cloned()).collect())
    }

    fn keys_after(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, BackendError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state.lock();
        let range = state.map.range::<[u8], _>((from, Bound::Unbounded));
        Ok(range.take(limit).map(|(key, _)| key.clone()).collect())
    }

    fn count(&self) -> Result<u64, BackendError> {
        Ok(self.state.lock().map.len() as u64)
    }

    fn begin(&self) -> Result<Box<dyn Transaction + '_>, BackendError> {
        Ok(Box::new(MapTransaction { state: self.state.clone(), writes: BTreeMap::new() }))
    }

    fn role(&self) -> RoleReply {
        let state = self.state.lock();
        match &state.master {
            None => RoleReply::Master {
                last: state.vlsn,
                replicas: vec![("127.0.0.1".to_owned(), 7002, 3)],
            },
            Some(_) => RoleReply::Replica {
                master: Some(("127.0.0.1".to_owned(), 7001)),
                connected: true,
                last: state.vlsn,
            },
        }
    }

    fn info(&self) -> Vec<InfoSection> {
        vec![("Replication", vec![("role".to_owned(), "master".to_owned())])]
    }

    fn wait_applied(&self, vlsn: i64, _timeout: Duration) -> Result<i64, BackendError> {
        let reached = self.state.lock().vlsn;
        if reached < vlsn {
            let reason = format!("VLSN {reached} reached, {vlsn} wanted");
            return Err(BackendError::Unavailable { reason });
        }
        Ok(reached)
    }

    fn master(&self, _: Duration) -> Option<String> {
        Some("127.0.0.1:7001".to_owned())
    }

    fn outcome(&self, commit: Committed, _: Duration) -> Result<&'static str, BackendError> {
        let last = self.state.lock().vlsn;
        Ok(if commit.vlsn <= last { "durable" } else { "open" })
    }

    fn checkpoint(&self) -> Result<i64, BackendError> {
        Ok(self.state.lock().vlsn)
    }

    fn drop_front(&self) -> Result<i64, BackendError> {
        Ok(1)
    }

    fn scrub(
        &self,
        _: u64,
        _: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<(String, String)>, BackendError> {
        Err(BackendError::Refused { reason: "memory has no log files".to_owned() })
    }

    fn restore(&self) -> Result<bool, BackendError> {
        Err(BackendError::Refused { reason: "nobody has what is in this memory".to_owned() })
    }
}
