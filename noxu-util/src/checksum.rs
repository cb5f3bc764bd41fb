//! CRC-32C (Castagnoli), hardware accelerated where the processor has it.

/// Checksum of `bytes`.
pub fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Checksum of what `crc` covers followed by `bytes`.
pub fn crc_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}
