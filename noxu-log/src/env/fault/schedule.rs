//! Schedule: which call goes wrong, and how: by number, by name, or by lot.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use fastrand::Rng;

/// What goes wrong in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with an error of this kind.
    Error(io::ErrorKind),
    /// A sync succeeds and saves nothing, as a disk does that lies about its cache; any other call
    /// is not affected.
    LostSync,
    /// A write succeeds, its bytes are nowhere, now or later: only the file's length knows of it.
    /// Any other call is not affected.
    LostWrite,
    /// A write succeeds, and its bytes overwrite another place: of all sectors of all files the
    /// one that this number draws. They are durable there at once, and cut where that file ends.
    /// Where they were sent nothing changes. Any other call is not affected.
    Misdirected(u64),
    /// The call takes so long, on the clock of [`super::FaultEnv::now`], and then succeeds.
    Slow(Duration),
}

impl Fault {
    /// The disk fails (EIO).
    pub const IO: Self = Self::Error(io::ErrorKind::Other);
    /// The disk is full (ENOSPC).
    pub const NO_SPACE: Self = Self::Error(io::ErrorKind::StorageFull);
}

/// How often something goes wrong by lot: each a probability for one call, 0 to 1; default 0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FaultRates {
    /// Any call fails with EIO.
    pub io_error: f64,
    /// A call that may take space fails with ENOSPC.
    pub no_space: f64,
    /// A sync saves nothing.
    pub lost_sync: f64,
    /// A write is acknowledged and never made.
    pub lost_write: f64,
    /// A write overwrites another place.
    pub misdirected_write: f64,
    /// Before the call, one bit somewhere in the files flips.
    pub rot: f64,
    /// Any call is slow.
    pub slow: f64,
    /// How slow at most; a slow call draws from 0 to this.
    pub slow_up_to: Duration,
}

/// The faults to come.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    at: BTreeMap<u64, Fault>,
    next: Vec<(&'static str, Fault)>,
    by_lot: Option<(FaultRates, Rng)>,
}

/// What a call is in for.
#[derive(Debug, Default)]
pub(super) struct Drawn {
    pub(super) fault: Option<Fault>,
    /// Draws the place where a bit flips before the call.
    pub(super) rot: Option<Rng>,
}

impl Schedule {
    pub(super) fn add_at(&mut self, number: u64, fault: Fault) {
        self.at.insert(number, fault);
    }

    pub(super) fn add_next(&mut self, function: &'static str, fault: Fault) {
        self.next.push((function, fault));
    }

    pub(super) fn draw_by_lot(&mut self, seed: u64, rates: FaultRates) {
        self.by_lot = Some((rates, Rng::with_seed(seed)));
    }

    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }

    /// What call `number` is in for.
    pub(super) fn draw(&mut self, number: u64, function: &'static str) -> Drawn {
        let mut drawn = match &mut self.by_lot {
            Some((rates, rng)) => draw_by_lot(rates, rng, function),
            None => Drawn::default(),
        };
        let named = self.next.iter().position(|(name, _)| *name == function);
        let planned = self.at.remove(&number);
        if let Some(fault) = planned.or_else(|| Some(self.next.remove(named?).1)) {
            drawn.fault = Some(fault);
        }
        drawn
    }
}

/// Draws the same number of times for every call of a function, so that one rate does not change
/// what another does.
fn draw_by_lot(rates: &FaultRates, rng: &mut Rng, function: &'static str) -> Drawn {
    let mut hit = |rate: f64| rng.f64() < rate;
    let (io_error, slow, rot) = (hit(rates.io_error), hit(rates.slow), hit(rates.rot));
    let (first, second, third) = (rng.f64(), rng.f64(), rng.f64());
    let (place, part) = (rng.u64(..), rng.f64());
    let fault = match function {
        _ if io_error => Some(Fault::IO),
        "write_at" | "allocate" | "create_dir_all" if first < rates.no_space => {
            Some(Fault::NO_SPACE)
        }
        "write_at" if second < rates.lost_write => Some(Fault::LostWrite),
        "write_at" if third < rates.misdirected_write => Some(Fault::Misdirected(place)),
        "sync_data" | "sync_dir" if second < rates.lost_sync => Some(Fault::LostSync),
        _ if slow => Some(Fault::Slow(rates.slow_up_to.mul_f64(part))),
        _ => None,
    };
    Drawn { fault, rot: rot.then(|| rng.fork()) }
}
