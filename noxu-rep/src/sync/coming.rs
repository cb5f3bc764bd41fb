//! Coming: a state on its way, as it is made ready to be installed beside the session that fetches it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::error::{RepError, Result};

/// Most bytes that are handed over and not taken.
const MAX_HANDED_BYTES: usize = 64 << 20;

/// A state on its way: how much of it is there, what seals it, how much has been made ready, and whether
/// anybody waits for that.
#[derive(Debug)]
pub struct Coming {
    first: Vec<u8>,
    arrived: Mutex<Arrived>,
    changed: Condvar,
    prepared: AtomicU64,
    cancelled: AtomicBool,
}

#[derive(Debug, Default)]
struct Arrived {
    bytes: u64,
    sealed: Option<Vec<u8>>,
    /// In their order, without gaps, up to `handed_end`.
    handed: VecDeque<Handed>,
    handed_bytes: usize,
    /// What is handed over next begins here: behind the last, or where whoever makes it ready reads on.
    handed_end: u64,
}

/// Bytes that the session wrote, from memory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Handed {
    /// Where they begin.
    at: u64,
    pub(crate) bytes: Vec<u8>,
    /// [`Answer::digest`](super::method::Answer::digest) of the answer that brought them.
    pub(crate) digest: [u8; 32],
}

impl Coming {
    /// One of which nothing is there yet. `first` is what the session seals by now
    /// ([`SyncSession::seal`](super::method::SyncSession::seal)).
    pub fn begun(first: Vec<u8>) -> Self {
        Self {
            first,
            arrived: Mutex::default(),
            changed: Condvar::new(),
            prepared: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
        }
    }

    /// One that is there.
    pub fn whole(sealed: Vec<u8>) -> Self {
        let coming = Self::begun(sealed.clone());
        coming.seal(sealed);
        coming
    }

    /// What the session would have sealed when it began.
    pub fn first(&self) -> &[u8] {
        &self.first
    }

    /// The session has so many bytes, and not all.
    pub fn arrive(&self, bytes: u64) {
        let mut arrived = self.arrived.lock();
        if bytes > arrived.bytes {
            arrived.bytes = bytes;
            self.changed.notify_all();
        }
    }

    /// The session has all of it.
    pub fn seal(&self, sealed: Vec<u8>) {
        self.arrived.lock().sealed = Some(sealed);
        self.changed.notify_all();
    }

    /// Waits until so many bytes are there, or all of it: then it returns what seals it.
    ///
    /// # Errors
    /// As [`Coming::check`].
    pub fn wait_for(&self, bytes: u64) -> Result<Option<Vec<u8>>> {
        let mut arrived = self.arrived.lock();
        loop {
            self.check()?;
            if arrived.sealed.is_some() || arrived.bytes >= bytes {
                return Ok(arrived.sealed.clone());
            }
            self.changed.wait(&mut arrived);
        }
    }

    /// Waits until all of it is there; returns what seals it.
    ///
    /// # Errors
    /// As [`Coming::check`].
    pub fn sealed(&self) -> Result<Vec<u8>> {
        let sealed = self.wait_for(u64::MAX)?;
        sealed.ok_or_else(|| RepError::state_machine("there is no end to it"))
    }

    /// Leaves a copy of bytes that are there from offset `at` on to whoever makes them ready, if they are
    /// what he needs next and there is room: they need not be read then.
    pub(crate) fn hand_over(&self, at: u64, bytes: &[u8], digest: [u8; 32]) {
        let mut arrived = self.arrived.lock();
        if at == arrived.handed_end && arrived.handed_bytes + bytes.len() <= MAX_HANDED_BYTES {
            arrived.handed_bytes += bytes.len();
            arrived.handed_end += bytes.len() as u64;
            arrived.handed.push_back(Handed { at, bytes: bytes.to_vec(), digest });
        }
    }

    /// The `len` bytes from offset `at` on, which are made ready next, if they were handed over; else they
    /// are read, and what comes behind them may be handed over again.
    pub(crate) fn take_over(&self, at: u64, len: usize) -> Option<Handed> {
        let mut arrived = self.arrived.lock();
        let found = arrived.handed.pop_front();
        if let Some(front) = found.filter(|front| (front.at, front.bytes.len()) == (at, len)) {
            arrived.handed_bytes -= len;
            return Some(front);
        }
        (arrived.handed, arrived.handed_bytes) = (VecDeque::new(), 0);
        arrived.handed_end = at + len as u64;
        None
    }

    /// Whether more is handed over than half of what there is room for: more had better wait. Of what is
    /// read it is not asked how much there is.
    pub(crate) fn is_behind(&self) -> bool {
        self.arrived.lock().handed_bytes > MAX_HANDED_BYTES / 2
    }

    /// So many bytes more are ready.
    pub fn advance(&self, bytes: u64) {
        self.prepared.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that are ready.
    pub fn prepared_bytes(&self) -> u64 {
        self.prepared.load(Ordering::Relaxed)
    }

    /// Nobody waits for it any more: whoever makes it ready had better end.
    pub fn cancel(&self) {
        // Under the lock, so that nobody begins to wait meanwhile.
        let _arrived = self.arrived.lock();
        self.cancelled.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Ends what nobody waits for.
    ///
    /// # Errors
    /// `StateMachine`, which nobody hears of, if nobody waits for it any more.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Acquire) {
            return Err(RepError::state_machine("nobody waits for it any more"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_is_handed_over_is_taken_in_its_order_and_bounded() {
        let coming = Coming::begun(Vec::new());
        let piece = vec![7; MAX_HANDED_BYTES / 4];
        let at = |number: u64| number * piece.len() as u64;
        let hand_over = |number| coming.hand_over(at(number), &piece, [number as u8; 32]);
        (0..5).for_each(hand_over);
        assert!(coming.is_behind());
        for number in 0..4 {
            let taken = coming.take_over(at(number), piece.len()).unwrap();
            assert_eq!((taken.at, taken.digest), (at(number), [number as u8; 32]));
            assert!(taken.bytes == piece);
        }
        // What comes behind one that there was no room for is no use before that is read.
        (5..7).for_each(hand_over);
        assert!(!coming.is_behind());
        assert_eq!(coming.take_over(at(4), piece.len()), None);
        (5..8).for_each(hand_over);
        let taken = coming.take_over(at(5), piece.len());
        assert_eq!(taken.map(|taken| taken.digest), Some([5; 32]));
        assert_eq!(coming.take_over(at(6), piece.len() - 1), None, "of another length");
        assert!(!coming.is_behind());
        (7..8).for_each(hand_over);
        assert_eq!(coming.take_over(at(7), piece.len()), None, "one byte is missing before it");
        (8..9).for_each(hand_over);
        assert!(coming.take_over(at(8), piece.len()).is_some());
    }

    #[test]
    fn whoever_waits_is_told_of_bytes_of_the_end_and_that_nobody_waits() {
        let coming = Coming::begun(vec![1]);
        thread::scope(|scope| {
            let some = scope.spawn(|| coming.wait_for(10));
            let all = scope.spawn(|| coming.sealed());
            coming.arrive(9);
            coming.arrive(10);
            assert_eq!(some.join().unwrap().unwrap(), None);
            coming.seal(vec![2]);
            assert_eq!(all.join().unwrap().unwrap(), [2]);
        });
        assert_eq!((coming.wait_for(11).unwrap(), coming.first()), (Some(vec![2]), &[1][..]));
        let coming = Coming::begun(Vec::new());
        thread::scope(|scope| {
            let all = scope.spawn(|| coming.sealed());
            coming.cancel();
            assert!(all.join().unwrap().is_err());
        });
    }
}
