//! Shrink: finds few faults that still break the same rule.
//!
//! Delta debugging (Zeller and Hildebrandt, 2002) over the numbers of the faults: leaves out halves,
//! then quarters and so on, as long as the rule stays broken.

use crate::schedule::Schedule;

/// The smallest schedule found within `budget` runs for which `breaks` holds, as it does for
/// `schedule`.
pub fn shrink(
    schedule: &Schedule,
    budget: usize,
    mut breaks: impl FnMut(&Schedule) -> bool,
) -> Schedule {
    let mut kept = schedule.numbers();
    let mut parts = 2;
    let mut runs = 0;
    if kept.is_empty() {
        return schedule.clone();
    }
    while runs < budget {
        let size = kept.len().div_ceil(parts);
        let smaller = kept.chunks(size).enumerate().map(|(left_out, _)| {
            let rest = kept.chunks(size).enumerate().filter(|(at, _)| *at != left_out);
            rest.flat_map(|(_, chunk)| chunk).copied().collect::<Vec<usize>>()
        });
        let mut found = None;
        for numbers in smaller {
            if runs == budget {
                break;
            }
            runs += 1;
            if breaks(&schedule.only(&numbers)) {
                found = Some(numbers);
                break;
            }
        }
        match found {
            Some(numbers) => {
                kept = numbers;
                parts = parts.saturating_sub(1).max(2);
                if kept.is_empty() {
                    break;
                }
            }
            None if size <= 1 => break,
            None => parts = (parts * 2).min(kept.len()),
        }
    }
    schedule.only(&kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    fn schedule() -> Schedule {
        let drawn = (0..1_000).map(|seed| Schedule::drawn(&Plan::drawn(seed)));
        drawn.into_iter().find(|schedule| schedule.faults.len() > 12).unwrap()
    }

    #[test]
    fn the_two_faults_that_matter_are_left() {
        let whole = schedule();
        let mut runs = 0;
        let small = shrink(&whole, 100, |some| {
            runs += 1;
            [2, 9].iter().all(|number| some.numbers().contains(number))
        });
        assert_eq!(small.numbers(), [2, 9]);
        assert!(runs < 100, "{runs}");
    }

    #[test]
    fn a_run_that_breaks_without_any_fault_says_so_and_a_budget_is_kept() {
        let whole = schedule();
        assert_eq!(shrink(&whole, 100, |_| true).numbers(), [0; 0]);
        let mut runs = 0;
        shrink(&whole, 5, |_| {
            runs += 1;
            false
        });
        assert_eq!(runs, 5);
    }
}
