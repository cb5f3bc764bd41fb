//! NoState: a state machine that keeps nothing, for this crate's tests of what is not about state.

use std::io::Read;

use noxu_log::EntryRun;
use noxu_util::{NULL_VLSN, Vlsn};

use crate::error::{RepError, Result};
use crate::sync::{Checkpoint, LogReader, StateMachine};

/// A state machine that keeps nothing.
pub(crate) struct NoState;

impl StateMachine for NoState {
    fn applied(&self) -> Vlsn {
        NULL_VLSN
    }
    fn apply(&self, _: &EntryRun, _: Vlsn) -> Result<()> {
        Ok(())
    }
    fn roll_back_to(&self, _: Vlsn, _: &dyn LogReader) -> Result<()> {
        Ok(())
    }
    fn checkpoint(&self) -> Result<Vlsn> {
        Ok(NULL_VLSN)
    }
    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        Err(RepError::state_machine("there is nothing"))
    }
    fn install_checkpoint(&self, _: Vlsn, _: &mut dyn Read) -> Result<()> {
        Ok(())
    }
}
