//! Syncup: what two logs have in common. The search itself is [`crate::core::syncup`].

pub use crate::core::syncup::{Matchpoint, SyncupView, VlsnEntry, find_matchpoint};
