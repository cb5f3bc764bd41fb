//! Splits: where to cut the keys of a state into parts that are asked for side by side.
//!
//! Nobody counts keys: a part is cut in the middle between its first and its last key, as numbers, at the next
//! key that is there; the widest parts first come first. So a few keys far away from the rest do not keep
//! the rest in one part. Parts of unlike size cost nothing but questions that are not side by side.

use std::collections::VecDeque;

use super::{MAX_SPLIT_BYTES, RangedState};
use crate::error::Result;

/// At most `parts` - 1 keys, ascending, none longer than [`MAX_SPLIT_BYTES`].
pub(super) fn splits(state: &dyn RangedState, parts: usize) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    let (Some(first), Some(last)) = (state.first_key(&[])?, state.last_key(None)?) else {
        return Ok(found);
    };
    let mut uncut = VecDeque::from([(first, last)]);
    while let Some((first, last)) = uncut.pop_front() {
        if found.len() + 1 >= parts {
            break;
        }
        if first >= last {
            continue;
        }
        let middle = middle(&first, &last);
        let Some(mut right) = state.first_key(&middle)?.filter(|key| *key <= last) else {
            continue; // they are gone by now
        };
        if right <= first {
            continue;
        }
        let Some(left) = state.last_key(Some(&right))?.filter(|key| *key >= first) else {
            continue;
        };
        let right_first = right.clone();
        // Shorter, it still lies behind what is on its left, unless the difference comes later.
        right.truncate(MAX_SPLIT_BYTES);
        if right <= left {
            continue;
        }
        found.push(right);
        uncut.push_back((first, left));
        uncut.push_back((right_first, last));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// About in the middle of two keys, above `low` and not above `high`, which is above it.
fn middle(low: &[u8], high: &[u8]) -> Vec<u8> {
    let common = low.iter().zip(high).take_while(|(a, b)| a == b).count();
    let number = |key: &[u8]| {
        let digits = key[common..].iter().copied().chain(std::iter::repeat(0)).take(8);
        digits.fold(0_u64, |number, digit| number << 8 | u64::from(digit))
    };
    let (a, b) = (number(low), number(high));
    if b <= a + 1 {
        return high.to_vec();
    }
    let between = a + (b - a).div_ceil(2);
    let mut key = high[..common].to_vec();
    key.extend_from_slice(&between.to_be_bytes());
    if key.as_slice() > high { high.to_vec() } else { key }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_lies_between_two_keys() {
        let cases: [(&[u8], &[u8]); 7] = [
            (b"a", b"b"),
            (b"", b"\0"),
            (b"key00000", b"key99999"),
            (b"a", b"a\0"),
            (b"aaaaaaaaaaaaaaaa", b"aaaaaaaaaaaaaaab"),
            (b"\xff", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            (b"a\0\0\0\0\0\0\0\0\x01", b"a\0\0\0\0\0\0\0\0\x02"),
        ];
        for (low, high) in cases {
            let middle = middle(low, high);
            assert!(low < &middle[..] && &middle[..] <= high, "{low:?} {middle:?} {high:?}");
        }
    }
}
