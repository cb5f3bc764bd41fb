//! See src/targets/mod.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    noxu_fuzz::run("verdict", input);
});
