//! Dispatcher: one port, many services.

/// Service that runs a syncup alone.
pub const SYNCUP_SERVICE_NAME: &str = "REP_SYNCUP";
