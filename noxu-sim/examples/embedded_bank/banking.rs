//! Banking: the bank in the simulator's worlds: what its clients do, and how it is judged. All that an
//! engine needs to run there.
//!
//! # Rules
//! - Conserved: whatever happens, at any moment, no node has lost money or made some.
//! - Balances: in the end every node has what the committed transfers come to, one after the other.

use std::sync::Arc;

use noxu_rep::{Admission, Durability, NodeContext, Result, StateMachine, Submitted};
use noxu_sim::clock::WALL_START_MS;
use noxu_sim::dice::{Draw, Rng};
use noxu_sim::embed::{Embedded, Ending};
use noxu_sim::invariants::Violation;
use noxu_sim::oracle::TxnId;
use noxu_sim::plan::Plan;
use noxu_util::NULL_VLSN;
use xxhash_rust::xxh3::xxh3_64;

use super::bank::{Accounts, Bank, Bug, OPENING, Posting, Transfer, entries};

/// The bank, sound or with a deliberate bug.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Banking {
    pub(crate) bug: Option<Bug>,
}

/// The world of a seed. In every other one the network is often cut and clients seldom wait for more
/// than the master's disk, so that masters apply what a rollback has to take back.
pub(crate) fn plan(seed: u64) -> Plan {
    let mut plan = Plan::drawn(seed);
    if seed % 2 == 1 {
        plan.faults.partition = 20.0;
        plan.durabilities = vec![(12, Durability::LOCAL), (1, Durability::MAJORITY)];
        plan.clients = plan.clients.min(2);
        plan.commits = 300;
    }
    plan
}

impl Embedded for Banking {
    type Image = (); // the bank keeps a file
    type Engine = Arc<Bank>;
    type Draft = Transfer;
    type Record = Transfer;

    fn open(&self, _image: &(), context: &NodeContext) -> Result<Arc<Bank>> {
        Bank::open(context, self.bug).map(Arc::new)
    }

    fn machine(&self, bank: &Arc<Bank>) -> Arc<dyn StateMachine> {
        Arc::clone(bank) as Arc<dyn StateMachine>
    }

    fn begin(
        &self,
        bank: &Arc<Bank>,
        id: TxnId,
        rng: &mut Rng,
        plan: &Plan,
    ) -> Result<Transfer, &'static str> {
        let accounts = plan.keys as u32;
        let from = rng.u32(..accounts);
        let has = bank.with_accounts(|accounts| accounts.balance(from));
        if has == 0 {
            return Err("bank: an empty account");
        }
        let receivers = rng.spread(1, plan.writes.min(8) as u64) as i64;
        // Others may take from it meanwhile: such a transfer may overdraw it.
        let most = (has / receivers).clamp(1, OPENING);
        let to = (0..receivers)
            .map(|_| Posting { account: rng.u32(..accounts), amount: rng.i64(1..=most) })
            .collect();
        let mut memo = format!("transfer {}", id.0).into_bytes();
        memo.resize(memo.len().max(rng.usize(..=plan.value_bytes)), b'.');
        Ok(Transfer::new(from, to, memo))
    }

    fn commit(
        &self,
        _bank: &Arc<Bank>,
        transfer: Transfer,
        admission: Admission,
    ) -> Result<(Submitted, Transfer), &'static str> {
        let bodies = transfer.encode(WALL_START_MS);
        let submitted = admission.write(&entries(&bodies)).map_err(|_| "bank: not written")?;
        Ok((submitted, transfer))
    }

    fn digest(&self, bank: &Arc<Bank>) -> Option<u64> {
        // No CRC, which is the same for everything that ends with its own.
        Some(xxh3_64(&bank.with_accounts(|accounts| accounts.encode(NULL_VLSN))))
    }

    fn check(&self, bank: &Arc<Bank>) -> Result<(), Violation> {
        match bank.with_accounts(Accounts::surplus) {
            0 => Ok(()),
            surplus => Err(Violation::new("conserved", format!("{surplus} came from nowhere"))),
        }
    }

    fn judge(&self, ending: &Ending<'_, Self>) -> Result<(), Violation> {
        let mut expected = Accounts::default();
        for (_, transfer) in &ending.committed {
            expected.book(transfer.record.postings());
        }
        for (host, bank) in &ending.nodes {
            let Some(account) = bank.with_accounts(|found| found.difference(&expected)) else {
                continue;
            };
            let found = bank.with_accounts(|found| found.balance(account));
            let expected = expected.balance(account);
            let found = format!("{host} has {found} in account {account}, {expected} expected");
            return Err(Violation::new("balances", found));
        }
        Ok(())
    }
}
