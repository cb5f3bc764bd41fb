//! noxu-kv
