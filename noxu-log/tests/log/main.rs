//! Tests of noxu-log over its public face: one binary, one module an area.

mod append_and_read;
mod caller;
mod concurrency;
mod conformance;
mod crash;
mod damage;
mod front_drop;
mod full_disk;
mod golden;
mod headers;
mod hook_env;
mod index;
mod inspect;
mod installing;
mod mark;
mod poison;
mod prefill;
mod reads;
mod recovery;
mod reopening;
mod retention;
mod rig;
mod scrub;
mod side_files;
mod support;
mod truncation;
