//! Clock: each machine's own time: a little fast or slow, and wrong by the wall.
//!
//! The monotonic time never steps back, whatever happens to the machine; what people call the time
//! may.

use std::time::Duration;

use noxu_rep::clock::{Clock, ClockHand};

use crate::event::Nanos;

/// The most that a machine's clock gains or loses, in parts per million.
pub const MOST_DRIFT_PPM: i32 = 200;

/// 2023-11-14: where the wall clocks of all worlds start, in milliseconds since 1970.
pub const WALL_START_MS: u64 = 1_700_000_000_000;

/// One machine's clock.
#[derive(Debug)]
pub struct MachineClock {
    clock: Clock,
    hand: ClockHand,
    drift_ppm: i32,
    wall_offset_ms: i64,
}

impl MachineClock {
    /// A clock that gains `drift_ppm` microseconds a second, and whose wall time is off.
    ///
    /// # Panics
    /// If it drifts by more than [`MOST_DRIFT_PPM`].
    pub fn new(drift_ppm: i32, wall_offset_ms: i64) -> Self {
        assert!(drift_ppm.abs() <= MOST_DRIFT_PPM, "{drift_ppm} ppm");
        let (clock, hand) = Clock::manual();
        let machine = Self { clock, hand, drift_ppm, wall_offset_ms };
        machine.set(Nanos(0));
        machine
    }

    /// For the node on this machine.
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// It is `now` in the world.
    pub fn set(&self, now: Nanos) {
        let local = self.local(now);
        self.hand.set(local);
        let wall = WALL_START_MS as i64 + local.as_millis() as i64 + self.wall_offset_ms;
        self.hand.set_wall_clock_ms(wall.max(0) as u64);
    }

    /// The wall clock is set by somebody.
    pub fn step_wall(&mut self, by_ms: i64) {
        self.wall_offset_ms += by_ms;
    }

    /// What this clock shows at `now`.
    pub fn local(&self, now: Nanos) -> Duration {
        let gained = i128::from(now.0) * i128::from(self.drift_ppm) / 1_000_000;
        Duration::from_nanos((i128::from(now.0) + gained) as u64)
    }

    /// The first moment at which this clock shows `local` or more.
    pub fn world(&self, local: Duration) -> Nanos {
        let local = local.as_nanos() as i128;
        let mut at = local * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm));
        // The division on the way back rounds: a few steps at most.
        while (self.local(Nanos(at as u64)).as_nanos() as i128) < local {
            at += 1;
        }
        Nanos(at as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_of_a_machine_comes_when_its_own_clock_says_so() {
        for ppm in [-200, -1, 0, 3, 200] {
            let machine = MachineClock::new(ppm, 0);
            for ns in [0, 1, 999_999_999, 1_000_000_000, 3_600_000_000_001] {
                let local = Duration::from_nanos(ns);
                let at = machine.world(local);
                assert!(machine.local(at) >= local, "{ppm} ppm, {ns} ns");
                assert!(at.0 == 0 || machine.local(Nanos(at.0 - 1)) < local, "{ppm} ppm, {ns} ns");
            }
        }
        let fast = MachineClock::new(200, 0);
        assert_eq!(fast.local(Nanos(1_000_000_000)).as_nanos(), 1_000_200_000);
    }

    #[test]
    fn the_wall_clock_steps_and_the_other_does_not() {
        let mut machine = MachineClock::new(0, -5_000);
        let clock = machine.clock();
        assert_eq!(clock.wall_clock_ms(), WALL_START_MS - 5_000);
        machine.step_wall(-60_000);
        machine.set(Nanos(1_000_000_000));
        assert_eq!(clock.wall_clock_ms(), WALL_START_MS - 64_000);
        assert_eq!(clock.now(), Duration::from_secs(1));
    }
}
