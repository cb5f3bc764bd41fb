//! Embed: what the worlds have to know of an engine to run it: how it is opened, what its clients do,
//! how it is judged.
//!
//! Everything else of a world is the same for every engine: machines and their faults, who finds the
//! master and when, what commits are told, the rules about logs and promises, and of I9 and I10 what
//! needs no look into a transaction. [`Kv`](crate::kv::Kv) is the engine that the repository ships
//! with; `examples/embedded_ledger` has another one.
//!
//! # One operation of a client
//! [`Embedded::begin`] at the node that the client takes for the master · a pause, in which others
//! go on · [`Embedded::commit`], with leave to write · what becomes of it is told to the
//! [`Oracle`](crate::oracle::Oracle), together with the record that `commit` returned.
//!
//! # Not here: finding the master and waiting for answers (workload.rs), running a world
//! ([`run_embedded`](crate::world::run_embedded)).

use std::sync::Arc;

use noxu_rep::{Admission, NodeContext, StateMachine, Submitted};
use noxu_util::Vlsn;

use crate::dice::Rng;
use crate::event::Host;
use crate::invariants::Violation;
use crate::oracle::{Transaction, TxnId};
use crate::plan::Plan;

/// An engine, as worlds run it: made anew for each world, which then has it on all of its machines.
///
/// A world must run the same way whenever it is run. So whatever an engine does may follow only from
/// what it is given: no clock but its entries', no hash map that is walked, no thread of its own.
/// It is called by one thread at a time, and must not wait for another one.
///
/// A reason that a method gives as text is counted under it in the
/// [`Coverage`](crate::coverage::Coverage) of the run; those of the worlds themselves begin with
/// "client: ".
pub trait Embedded: Sized {
    /// What a machine keeps of the engine besides the files that the engine writes through
    /// [`NodeContext::env`], as if it were synced at once: it outlives processes and power losses, and
    /// begins anew when the machine's disk is replaced. `()` for an engine that keeps files.
    type Image: Default;

    /// The engine as one process has it. Whatever is only in memory dies with it.
    type Engine;

    /// An operation that a client has begun and not written yet. It may hold a snapshot open; it is
    /// dropped unwritten if the node's process ends meanwhile.
    type Draft;

    /// What is remembered of an operation that was written, to judge the run by.
    type Record;

    /// Opens the engine in a process that starts. May be asked to before there is a log, when a
    /// restore has to be finished first.
    ///
    /// # Errors
    /// What it finds and cannot open. Its process does not start then and is tried again later; from
    /// the second phase of the world on that is a violation, unless the disk is full or damaged.
    fn open(&self, image: &Self::Image, context: &NodeContext) -> noxu_rep::Result<Self::Engine>;

    /// The engine as replication sees it. Asked for once, right after it was opened.
    fn machine(&self, engine: &Self::Engine) -> Arc<dyn StateMachine>;

    /// What the engine has to do some time, such as flushing: called every 100 ms of the world while
    /// the process runs, in place of the threads that it would have in a program.
    fn keep_house(&self, engine: &Self::Engine) {
        let _ = engine;
    }

    /// Begins an operation at a node that takes itself for the master: draws what to do, and reads
    /// what it needs for that. `plan` has sizes that may be used.
    ///
    /// # Errors
    /// Why there is nothing to begin; the client tries again later.
    fn begin(
        &self,
        engine: &Self::Engine,
        id: TxnId,
        rng: &mut Rng,
        plan: &Plan,
    ) -> Result<Self::Draft, &'static str>;

    /// Writes an operation that was begun in the same process, with [`Admission::write`]; returns what
    /// that said. The world has it started and hears what becomes of it.
    ///
    /// # Errors
    /// Why nothing was written, such as a conflict; the client begins anew.
    fn commit(
        &self,
        engine: &Self::Engine,
        draft: Self::Draft,
        admission: Admission,
    ) -> Result<(Submitted, Self::Record), &'static str>;

    /// A number that two nodes share if what they have applied is the same. Compared between nodes
    /// that have applied the same log (I14), every 100 ms until the group is one again. `None` if the
    /// state cannot be read, which is a violation in the end.
    fn digest(&self, engine: &Self::Engine) -> Option<u64>;

    /// Looks at one node after each of its steps: what must hold at any moment. There are tens of
    /// thousands of steps in a world, so it has to be quick.
    ///
    /// # Errors
    /// What does not hold.
    fn check(&self, engine: &Self::Engine) -> Result<(), Violation> {
        let _ = engine;
        Ok(())
    }

    /// Judges a world whose group has become one again, by what was committed. That it is all there,
    /// in an order that agrees with real time, has been seen to.
    ///
    /// # Errors
    /// What is wrong.
    fn judge(&self, ending: &Ending<'_, Self>) -> Result<(), Violation> {
        let _ = ending;
        Ok(())
    }
}

/// What a world ended with.
pub struct Ending<'a, E: Embedded> {
    /// The operations of clients that are in the log the group ended with, in its order: those that
    /// were reported durable, and what survived of the others. By VLSN of their commit entries.
    pub committed: Vec<(Vlsn, &'a Transaction<E::Record>)>,
    /// The engines of all nodes that run; each has applied the whole log.
    pub nodes: Vec<(Host, &'a E::Engine)>,
}
