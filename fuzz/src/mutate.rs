//! Mutations: seeded changes to an input, as fuzzers make them.

use fastrand::Rng;

const NUMBERS: [u64; 9] =
    [0, 1, 0x7f, 0xff, 0xffff, u32::MAX as u64, i64::MAX as u64, 1 << 62, u64::MAX];

/// Longest input that is made.
const MOST_BYTES: usize = 64 << 10;

/// A changed copy of `input`; parts of `other` may be mixed in.
pub fn mutated(input: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..1 << rng.u32(0..4) {
        mutate_once(&mut out, other, rng);
    }
    out.truncate(MOST_BYTES);
    out
}

fn mutate_once(out: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    if out.is_empty() {
        out.push(rng.u8(..));
        return;
    }
    let at = rng.usize(..out.len());
    match rng.u32(0..10) {
        0 => out[at] ^= 1 << rng.u32(0..8),
        1 => out[at] = rng.u8(..),
        2 => out.truncate(at),
        3 => {
            let end = (at + rng.usize(1..40)).min(out.len());
            out.drain(at..end);
        }
        4 => {
            let count = rng.usize(1..20);
            out.splice(at..at, (0..count).map(|_| rng.u8(..)).collect::<Vec<_>>());
        }
        5 => {
            let bytes = NUMBERS[rng.usize(..NUMBERS.len())].to_le_bytes();
            let len = [1, 2, 4, 8][rng.usize(..4)].min(out.len() - at);
            out[at..at + len].copy_from_slice(&bytes[..len]);
        }
        6 => {
            let end = (at + rng.usize(1..64)).min(out.len());
            let copy = out[at..end].to_vec();
            let to = rng.usize(..=out.len());
            out.splice(to..to, copy);
        }
        7 if !other.is_empty() => {
            let from = rng.usize(..other.len());
            let end = (from + rng.usize(1..64)).min(other.len());
            out.splice(at..at, other[from..end].iter().copied());
        }
        8 if !other.is_empty() => {
            let from = rng.usize(..other.len());
            out.truncate(at);
            out.extend_from_slice(&other[from..]);
        }
        _ => {
            let end = (at + rng.usize(1..32)).min(out.len());
            out[at..end].fill(if rng.bool() { 0 } else { 0xff });
        }
    }
}
