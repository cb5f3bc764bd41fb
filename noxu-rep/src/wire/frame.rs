//! Frame: how a byte stream carries frames: a u32 length, little endian, then that many bytes.

/// Bytes of the length before each frame.
pub const FRAME_LENGTH_BYTES: usize = 4;

/// A length over the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverCap {
    /// The length.
    pub bytes: u64,
    /// The cap.
    pub cap: u32,
}

/// The length field for a frame of `bytes` bytes.
pub fn encode_length(bytes: usize, cap: u32) -> Result<[u8; FRAME_LENGTH_BYTES], OverCap> {
    match u32::try_from(bytes) {
        Ok(len) if len <= cap => Ok(len.to_le_bytes()),
        _ => Err(OverCap { bytes: bytes as u64, cap }),
    }
}

/// The frame's length from its length field. Checked before any memory is taken for the frame.
pub fn decode_length(field: [u8; FRAME_LENGTH_BYTES], cap: u32) -> Result<usize, OverCap> {
    match u32::from_le_bytes(field) {
        len if len <= cap => Ok(len as usize),
        len => Err(OverCap { bytes: u64::from(len), cap }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_little_endian_and_capped_in_both_directions() {
        assert_eq!(encode_length(0x0102, 0x0102), Ok([2, 1, 0, 0]));
        assert_eq!(decode_length([2, 1, 0, 0], 0x0102), Ok(0x0102));
        assert_eq!(encode_length(9, 8), Err(OverCap { bytes: 9, cap: 8 }));
        assert_eq!(
            decode_length(*b"GET ", 1 << 20),
            Err(OverCap { bytes: 0x2054_4547, cap: 1 << 20 })
        );
    }
}
