//! noxu-log
