//! Bank: accounts and transfers between them, as a state machine over a replicated log. It knows
//! nothing of simulations.
//!
//! ```text
//! a transfer in the log    posting*, the last with COMMIT, all of kind 16
//! body without COMMIT      account u32 · amount i64
//! body with COMMIT         wall clock u64 (ms since 1970) · account u32 · amount i64 · memo
//! checkpoint               VLSN · count u32 · (account u32 · moved i64)* · crc32c u32 of all that
//! ```
//! Little endian. The log says what was asked for, not what came of it: a transfer that would
//! overdraw an account is refused when it is applied, and so on every node.
//!
//! # Invariants
//! - What was moved, over all accounts, comes to 0.
//! - A checkpoint ends where no transfer is open, at or below DTVLSN: nothing in it is rolled back.
//! - `booked` has every end of a transfer above the checkpoint, so any state from there on can be had
//!   by taking back from the newest.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::path::PathBuf;

use clap::ValueEnum;
use noxu_log::env::{read_whole, sync_parent, write_whole};
use noxu_log::{Entry, EntryFlags, EntryKind, EntryRun, NewEntry};
use noxu_rep::{
    Checkpoint, LogReader, MemoryCheckpoint, NodeContext, RepError, Result, StateMachine,
};
use noxu_util::checksum::crc;
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{NULL_VLSN, Vlsn};
use parking_lot::Mutex;

/// Kind of an entry that holds a posting.
const POSTING: EntryKind = EntryKind(16);

/// What every account has in the beginning.
pub(crate) const OPENING: i64 = 1_000;
/// Most that one posting may change: sums stay far from overflowing.
const MOST: u64 = 1 << 40;

/// A change of one account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Posting {
    pub(crate) account: u32,
    pub(crate) amount: i64,
}

/// Money that goes from one account to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transfer {
    postings: Vec<Posting>,
    memo: Vec<u8>,
}

impl Transfer {
    /// Takes from one account what the others get.
    pub(crate) fn new(from: u32, to: Vec<Posting>, memo: Vec<u8>) -> Self {
        let amount = -to.iter().map(|posting| posting.amount).sum::<i64>();
        let mut postings = to;
        postings.push(Posting { account: from, amount });
        Self { postings, memo }
    }

    /// What it changes.
    pub(crate) fn postings(&self) -> &[Posting] {
        &self.postings
    }

    /// The bodies of its entries.
    pub(crate) fn encode(&self, wall_ms: u64) -> Vec<Vec<u8>> {
        let body = |(at, posting): (usize, &Posting)| {
            let is_last = at + 1 == self.postings.len();
            let mut body = Vec::new();
            if is_last {
                body.put_u64(wall_ms);
            }
            body.put_u32(posting.account);
            body.put_u64(posting.amount as u64);
            if is_last {
                body.put_bytes(&self.memo);
            }
            body
        };
        self.postings.iter().enumerate().map(body).collect()
    }
}

/// The entries with these bodies.
pub(crate) fn entries(bodies: &[Vec<u8>]) -> Vec<NewEntry<'_>> {
    let mut entries: Vec<_> =
        bodies.iter().map(|body| NewEntry::new(POSTING, EntryFlags::NONE, body)).collect();
    if let (Some(last), Some(body)) = (entries.last_mut(), bodies.last()) {
        *last = NewEntry::new(POSTING, EntryFlags::COMMIT, body);
    }
    entries
}

fn decode_posting(entry: &Entry<'_>) -> Result<Posting, CodecError> {
    let mut reader = Reader::new(entry.body);
    if entry.header.is_commit() {
        reader.u64("wall clock")?;
    }
    let (account, amount) = (reader.u32("account")?, reader.u64("amount")? as i64);
    if amount.unsigned_abs() > MOST {
        let expected = "no more than anybody has";
        return Err(CodecError::OutOfRange { what: "amount", found: amount.to_string(), expected });
    }
    Ok(Posting { account, amount })
}

/// All accounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    /// What each has beyond [`OPENING`], unless that is nothing.
    moved: BTreeMap<u32, i64>,
}

impl Accounts {
    /// What an account has.
    pub(crate) fn balance(&self, account: u32) -> i64 {
        OPENING + self.moved.get(&account).copied().unwrap_or_default()
    }

    /// What all of them have beyond what they had in the beginning.
    pub(crate) fn surplus(&self) -> i64 {
        self.moved.values().sum()
    }

    /// An account that has not the same in both.
    pub(crate) fn difference(&self, other: &Self) -> Option<u32> {
        let accounts = self.moved.keys().chain(other.moved.keys());
        accounts.copied().find(|account| self.balance(*account) != other.balance(*account))
    }

    /// Books a transfer; false, with nothing changed, if it would overdraw an account.
    pub(crate) fn book(&mut self, postings: &[Posting]) -> bool {
        self.change_all(postings);
        let covered = postings.iter().all(|posting| self.balance(posting.account) >= 0);
        if !covered {
            self.take_back(postings);
        }
        covered
    }

    fn take_back(&mut self, postings: &[Posting]) {
        for Posting { account, amount } in postings {
            self.change(Posting { account: *account, amount: -amount });
        }
    }

    fn change_all(&mut self, postings: &[Posting]) {
        for posting in postings {
            self.change(*posting);
        }
    }

    fn change(&mut self, Posting { account, amount }: Posting) {
        let moved = self.moved.entry(account).or_default();
        *moved += amount;
        if *moved == 0 {
            self.moved.remove(&account);
        }
    }

    /// A checkpoint of them, which ends at `vlsn`.
    pub(crate) fn encode(&self, vlsn: Vlsn) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_vlsn(vlsn);
        out.put_u32(self.moved.len() as u32);
        for (account, moved) in &self.moved {
            out.put_u32(*account);
            out.put_u64(*moved as u64);
        }
        out.put_u32(crc(&out));
        out
    }

    /// What a checkpoint holds, and where it ends.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Vlsn, Self), CodecError> {
        let mut reader = Reader::new(bytes);
        let vlsn = reader.vlsn("VLSN")?;
        let mut moved = BTreeMap::new();
        for _ in 0..reader.u32("number of accounts")? {
            moved.insert(reader.u32("account")?, reader.u64("moved")? as i64);
        }
        let computed = crc(&bytes[..bytes.len() - reader.remaining()]);
        let stored = reader.u32("checksum")?;
        reader.finish("checkpoint")?;
        if stored != computed {
            let (found, expected) = (format!("{stored:08x}"), "that of the content");
            return Err(CodecError::OutOfRange { what: "checksum", found, expected });
        }
        Ok((vlsn, Self { moved }))
    }
}

/// A deliberate bug, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bug {
    /// What is rolled back stays booked.
    ForgetsToUndo,
    /// A transfer that is not covered is booked all the same.
    Overdraws,
    /// Of a transfer that is not covered the postings are booked that are.
    BooksInPart,
}

/// A node's accounts.
pub(crate) struct Bank {
    context: NodeContext,
    bug: Option<Bug>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    accounts: Accounts,
    /// Everything through it is applied.
    applied: Vlsn,
    /// The file holds everything through it.
    checkpointed: Vlsn,
    /// The transfer whose commit has not come: its postings, and where they are.
    open: Vec<(Vlsn, Posting)>,
    /// Where transfers ended above the checkpoint, and what was booked there.
    booked: VecDeque<(Vlsn, Vec<Posting>)>,
}

impl Bank {
    /// The accounts of a node as its last checkpoint has them.
    pub(crate) fn open(context: &NodeContext, bug: Option<Bug>) -> Result<Self> {
        let bank = Self { context: context.clone(), bug, state: Mutex::new(State::default()) };
        if context.env().exists(&bank.path()).map_err(RepError::state_machine)? {
            let bytes = read_whole(&**context.env(), &bank.path())?;
            *bank.state.lock() = State::at_checkpoint(&bytes)?;
        }
        Ok(bank)
    }

    /// The accounts at this moment.
    pub(crate) fn with_accounts<T>(&self, look: impl FnOnce(&Accounts) -> T) -> T {
        look(&self.state.lock().accounts)
    }

    fn path(&self) -> PathBuf {
        self.context.state_dir().join("accounts")
    }

    /// Makes a checkpoint durable.
    fn store(&self, bytes: &[u8]) -> Result<()> {
        let env = self.context.env();
        env.create_dir_all(&self.context.state_dir()).map_err(RepError::state_machine)?;
        write_whole(&**env, &self.path(), bytes).map_err(RepError::state_machine)
    }

    /// Forgets everything, for good.
    fn start_over(&self, state: &mut State) -> Result<()> {
        let env = self.context.env();
        env.remove(&self.path()).map_err(RepError::state_machine)?;
        sync_parent(&**env, &self.path())?;
        *state = State::default();
        Ok(())
    }
}

impl State {
    fn at_checkpoint(bytes: &[u8]) -> Result<Self> {
        let (vlsn, accounts) = Accounts::decode(bytes).map_err(RepError::state_machine)?;
        Ok(Self { accounts, applied: vlsn, checkpointed: vlsn, ..Self::default() })
    }

    fn apply(&mut self, entry: &Entry<'_>, bug: Option<Bug>) -> Result<(), CodecError> {
        let vlsn = entry.header.vlsn;
        assert_eq!(vlsn, self.applied.next(), "entries are applied in order, each once");
        self.applied = vlsn;
        if entry.header.kind == POSTING {
            self.open.push((vlsn, decode_posting(entry)?));
        }
        if entry.header.is_txn_end() {
            let mut postings: Vec<_> = self.open.drain(..).map(|(_, posting)| posting).collect();
            if !entry.header.is_commit() {
                // A new term ends what an earlier one has left open.
                postings.clear();
            }
            let accounts = &mut self.accounts;
            match bug {
                Some(Bug::Overdraws) => accounts.change_all(&postings),
                Some(Bug::BooksInPart) => postings.retain(|posting| accounts.book(&[*posting])),
                Some(Bug::ForgetsToUndo) | None if accounts.book(&postings) => {}
                Some(Bug::ForgetsToUndo) | None => postings.clear(),
            }
            self.booked.push_back((vlsn, postings));
        }
        Ok(())
    }

    /// The accounts as they were at `vlsn`, at or above the checkpoint.
    fn accounts_at(&self, vlsn: Vlsn) -> Accounts {
        let mut accounts = self.accounts.clone();
        for (_, postings) in self.booked.iter().rev().take_while(|(at, _)| *at > vlsn) {
            accounts.take_back(postings);
        }
        accounts
    }
}

impl StateMachine for Bank {
    fn applied(&self) -> Vlsn {
        self.state.lock().applied
    }

    fn apply(&self, run: &EntryRun, through: Vlsn) -> Result<()> {
        let mut state = self.state.lock();
        let mut entries = run.entries().take_while(|entry| entry.header.vlsn <= through);
        entries.try_for_each(|entry| state.apply(&entry, self.bug)).map_err(RepError::state_machine)
    }

    fn roll_back_to(&self, matchpoint: Vlsn, _replay: &dyn LogReader) -> Result<()> {
        let mut state = self.state.lock();
        let checkpointed = state.checkpointed;
        if matchpoint < checkpointed {
            if matchpoint == NULL_VLSN {
                // A restore of a log that has its front: it begins anew.
                return self.start_over(&mut state);
            }
            let cause = format!("{matchpoint} is below the checkpoint at {checkpointed}");
            return Err(RepError::state_machine(cause));
        }
        while let Some((_, postings)) = state.booked.pop_back_if(|(at, _)| *at > matchpoint) {
            if self.bug != Some(Bug::ForgetsToUndo) {
                state.accounts.take_back(&postings);
            }
        }
        state.open.retain(|(at, _)| *at <= matchpoint);
        state.applied = state.applied.min(matchpoint);
        Ok(())
    }

    fn checkpointed(&self) -> Vlsn {
        self.state.lock().checkpointed
    }

    fn checkpoint(&self) -> Result<Vlsn> {
        let mut state = self.state.lock();
        let stable = self.context.dtvlsn();
        let mut ends = state.booked.iter().rev().map(|(at, _)| *at);
        let Some(at) = ends.find(|at| *at <= stable) else { return Ok(state.checkpointed) };
        // Before the file, which could not be rolled back.
        self.context.raise_commit_floor(at)?;
        self.store(&state.accounts_at(at).encode(at))?;
        state.booked.retain(|(end, _)| *end > at);
        state.checkpointed = at;
        Ok(at)
    }

    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        let state = self.state.lock();
        let vlsn = state.checkpointed;
        Ok(Box::new(MemoryCheckpoint::new(vlsn, state.accounts_at(vlsn).encode(vlsn))))
    }

    fn install_checkpoint(&self, vlsn: Vlsn, source: &mut dyn Read) -> Result<()> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(RepError::state_machine)?;
        let installed = State::at_checkpoint(&bytes)?;
        if installed.applied != vlsn {
            let cause = format!("a checkpoint at {}, expected at {vlsn}", installed.applied);
            return Err(RepError::state_machine(cause));
        }
        self.store(&bytes)?;
        *self.state.lock() = installed;
        Ok(())
    }
}
