//! Core: everything that decides, as deterministic state machines. Messages and completions in,
//! messages and outcomes out; no sockets, files, threads or clocks.

pub mod syncup;
