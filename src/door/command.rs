//! Command: what a request asks for, checked before anything is done.

use std::time::Duration;

use bytes::Bytes;

use super::backend::{Committed, DurabilityName};

/// A command on keys: what `MULTI` may queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DataCommand {
    /// `GET key`
    Get(Bytes),
    /// `MGET key...`
    MGet(Vec<Bytes>),
    /// `EXISTS key...`
    Exists(Vec<Bytes>),
    /// `SET key value [NX|XX]`
    Set {
        /// Key.
        key: Bytes,
        /// Value.
        value: Bytes,
        /// Only if the key is there (`Some(true)`) or is not (`Some(false)`).
        only_if: Option<bool>,
    },
    /// `MSET key value...`
    MSet(Vec<(Bytes, Bytes)>),
    /// `DEL key...`
    Del(Vec<Bytes>),
}

impl DataCommand {
    /// Whether it only writes: it can be submitted without reading anything before.
    pub(super) const fn is_blind_write(&self) -> bool {
        matches!(self, Self::Set { only_if: None, .. } | Self::MSet(_))
    }

    /// Whether it may write.
    pub(super) const fn is_write(&self) -> bool {
        matches!(self, Self::Set { .. } | Self::MSet(_) | Self::Del(_))
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// A command on keys.
    Data(DataCommand),
    /// `SCAN cursor [MATCH pattern] [COUNT count]`
    Scan {
        /// 0 or a cursor from an earlier answer.
        cursor: u64,
        /// Pattern of keys to answer.
        pattern: Option<Bytes>,
        /// Keys to look at.
        count: usize,
    },
    /// `DBSIZE`
    DbSize,
    /// `MULTI`
    Multi,
    /// `EXEC`
    Exec,
    /// `DISCARD`
    Discard,
    /// `PING [message]`
    Ping(Option<Bytes>),
    /// `ECHO message`
    Echo(Bytes),
    /// `QUIT`
    Quit,
    /// A command that is accepted and changes nothing: `SELECT 0`, `CLIENT SETNAME`, ...
    Accepted,
    /// `CLIENT ID`, `CLIENT GETNAME`, `CONFIG GET`, `COMMAND DOCS`: an empty answer of its kind.
    Empty(EmptyReply),
    /// `HELLO [2]`
    Hello,
    /// `COMMAND`
    Table,
    /// `COMMAND COUNT`
    TableSize,
    /// `ROLE`
    Role,
    /// `INFO [section]`
    Info(Option<String>),
    /// `NOXU DURABILITY`
    ShowDurability,
    /// `NOXU DURABILITY name`
    SetDurability(DurabilityName),
    /// `NOXU TOKEN`
    Token,
    /// `NOXU WAIT vlsn timeout_ms`
    Wait {
        /// VLSN to wait for.
        vlsn: i64,
        /// How long.
        timeout: Duration,
    },
    /// `NOXU MASTER timeout_ms`
    Master {
        /// How long to wait for word of a master.
        timeout: Duration,
    },
    /// `NOXU OUTCOME vlsn:term:fingerprint [timeout_ms]`
    Outcome {
        /// The commit, as `NOXU TOKEN` and the answer `UNKNOWN` name it.
        commit: Committed,
        /// How long to wait while it is open.
        timeout: Duration,
    },
    /// `NOXU CHECKPOINT`
    Checkpoint,
    /// `NOXU DROP-FRONT`
    DropFront,
    /// `NOXU SCRUB [bytes_per_second]`
    Scrub {
        /// Most bytes read a second.
        bytes_per_second: u64,
    },
    /// `NOXU RESTORE`
    Restore,
}

/// Kinds of an empty answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EmptyReply {
    /// An array without elements.
    Array,
    /// Null.
    Null,
    /// The number 1.
    One,
}

/// A request that is well-formed but cannot be done: the error answer's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ERR {0}")]
pub(super) struct BadCommand(pub(super) String);

/// A row of the command table: name, arity as Redis counts it (negative: at least), flags, first key,
/// last key, step.
pub(super) type CommandRow = (&'static str, i64, &'static [&'static str], i64, i64, i64);

/// All commands.
pub(super) const COMMANDS: &[CommandRow] = &[
    ("client", -2, &["admin"], 0, 0, 0),
    ("command", -1, &["random"], 0, 0, 0),
    ("config", -2, &["admin"], 0, 0, 0),
    ("dbsize", 1, &["readonly"], 0, 0, 0),
    ("del", -2, &["write"], 1, -1, 1),
    ("discard", 1, &["fast"], 0, 0, 0),
    ("echo", 2, &["fast"], 0, 0, 0),
    ("exec", 1, &["write"], 0, 0, 0),
    ("exists", -2, &["readonly"], 1, -1, 1),
    ("get", 2, &["readonly", "fast"], 1, 1, 1),
    ("hello", -1, &["fast"], 0, 0, 0),
    ("info", -1, &["random"], 0, 0, 0),
    ("mget", -2, &["readonly"], 1, -1, 1),
    ("mset", -3, &["write"], 1, -1, 2),
    ("multi", 1, &["fast"], 0, 0, 0),
    ("noxu", -2, &["admin"], 0, 0, 0),
    ("ping", -1, &["fast"], 0, 0, 0),
    ("quit", -1, &["fast"], 0, 0, 0),
    ("role", 1, &["fast"], 0, 0, 0),
    ("scan", -2, &["readonly", "random"], 0, 0, 0),
    ("select", 2, &["fast"], 0, 0, 0),
    ("set", -3, &["write"], 1, 1, 1),
];

/// Most keys that one `SCAN` looks at.
pub(super) const MAX_SCAN_COUNT: usize = 100_000;
/// Longest `NOXU WAIT`.
const MAX_WAIT: Duration = Duration::from_hours(1);

impl Command {
    /// Reads a request's arguments. `arguments` is not empty.
    pub(super) fn parse(arguments: &[Bytes]) -> Result<Self, BadCommand> {
        let name = text(&arguments[0]).to_ascii_lowercase();
        let Some(row) = COMMANDS.iter().find(|row| row.0 == name) else {
            return Err(BadCommand(format!(
                "unknown command {:?}, known are {}",
                shortened(&arguments[0]),
                COMMANDS.iter().map(|row| row.0).collect::<Vec<_>>().join(" ")
            )));
        };
        let count = arguments.len() as i64;
        if (row.1 >= 0 && count != row.1) || (row.1 < 0 && count < -row.1) {
            return Err(BadCommand(format!(
                "wrong number of arguments for '{name}': {} found, {}{} expected",
                count - 1,
                if row.1 < 0 { "at least " } else { "" },
                row.1.abs() - 1
            )));
        }
        let rest = &arguments[1..];
        Ok(match row.0 {
            "ping" if rest.len() > 1 => return Err(wrong_number("ping")),
            "ping" => Self::Ping(rest.first().cloned()),
            "echo" => Self::Echo(rest[0].clone()),
            "quit" => Self::Quit,
            "get" => Self::Data(DataCommand::Get(rest[0].clone())),
            "mget" => Self::Data(DataCommand::MGet(rest.to_vec())),
            "exists" => Self::Data(DataCommand::Exists(rest.to_vec())),
            "del" => Self::Data(DataCommand::Del(rest.to_vec())),
            "set" => Self::Data(parse_set(rest)?),
            "mset" if rest.len() % 2 == 1 => return Err(wrong_number("mset")),
            "mset" => Self::Data(DataCommand::MSet(
                rest.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect(),
            )),
            "scan" => parse_scan(rest)?,
            "dbsize" => Self::DbSize,
            "multi" => Self::Multi,
            "exec" => Self::Exec,
            "discard" => Self::Discard,
            "role" => Self::Role,
            "info" => Self::Info(rest.first().map(|section| text(section).to_ascii_lowercase())),
            "select" if &rest[0][..] == b"0" => Self::Accepted,
            "select" => {
                return Err(BadCommand(format!(
                    "database {:?} is not there, the only one is 0",
                    shortened(&rest[0])
                )));
            }
            "hello" => match rest.first().map(|version| &version[..]) {
                None | Some(b"2") => Self::Hello,
                // The code word that clients look for to fall back to RESP2.
                Some(_) => return Err(BadCommand("NOPROTO only RESP2 is spoken here".to_owned())),
            },
            "command" => match subcommand(rest).as_deref() {
                None => Self::Table,
                Some("count") => Self::TableSize,
                Some(_) => Self::Empty(EmptyReply::Array),
            },
            "config" => match subcommand(rest).as_deref() {
                Some("get") => Self::Empty(EmptyReply::Array),
                _ => return Err(BadCommand("CONFIG knows only GET, and has nothing".to_owned())),
            },
            "client" => match subcommand(rest).as_deref() {
                Some("setname" | "setinfo" | "no-evict" | "no-touch") => Self::Accepted,
                Some("getname") => Self::Empty(EmptyReply::Null),
                Some("id") => Self::Empty(EmptyReply::One),
                _ => {
                    return Err(BadCommand(
                        "CLIENT knows SETNAME, SETINFO, GETNAME and ID".to_owned(),
                    ));
                }
            },
            "noxu" => parse_noxu(rest)?,
            other => unreachable!("{other} is in the table and has no case"),
        })
    }
}

fn parse_noxu(rest: &[Bytes]) -> Result<Command, BadCommand> {
    let known = "NOXU knows DURABILITY [name], TOKEN, WAIT vlsn ms, MASTER ms, OUTCOME \
                 commit [ms], CHECKPOINT, DROP-FRONT, SCRUB [bytes/s] and RESTORE";
    Ok(match (subcommand(rest).as_deref(), &rest[1..]) {
        (Some("durability"), []) => Command::ShowDurability,
        (Some("durability"), [name]) => Command::SetDurability(
            text(name).parse().map_err(|e: super::BadDurability| BadCommand(e.to_string()))?,
        ),
        (Some("token"), []) => Command::Token,
        (Some("wait"), [vlsn, timeout_ms]) => Command::Wait {
            vlsn: number(vlsn, "a VLSN")? as i64,
            timeout: Duration::from_millis(number(timeout_ms, "a time in ms")?).min(MAX_WAIT),
        },
        (Some("master"), [timeout_ms]) => Command::Master {
            timeout: Duration::from_millis(number(timeout_ms, "a time in ms")?).min(MAX_WAIT),
        },
        (Some("outcome"), [commit, rest @ ..]) if rest.len() <= 1 => Command::Outcome {
            commit: text(commit).parse().map_err(BadCommand)?,
            timeout: match rest {
                [timeout_ms] => Duration::from_millis(number(timeout_ms, "a time in ms")?),
                _ => Duration::ZERO,
            }
            .min(MAX_WAIT),
        },
        (Some("checkpoint"), []) => Command::Checkpoint,
        (Some("drop-front"), []) => Command::DropFront,
        (Some("scrub"), []) => Command::Scrub { bytes_per_second: u64::MAX },
        (Some("scrub"), [rate]) => Command::Scrub {
            bytes_per_second: match number(rate, "a rate in bytes per second")? {
                0 => return Err(BadCommand("a rate of 0 found, 1 or more expected".to_owned())),
                rate => rate,
            },
        },
        (Some("restore"), []) => Command::Restore,
        _ => return Err(BadCommand(known.to_owned())),
    })
}

fn parse_set(rest: &[Bytes]) -> Result<DataCommand, BadCommand> {
    let mut only_if = None;
    for option in &rest[2..] {
        only_if = match (text(option).to_ascii_lowercase().as_str(), only_if) {
            ("nx", None) => Some(false),
            ("xx", None) => Some(true),
            _ => {
                return Err(BadCommand(format!(
                    "SET option {:?} found, NX or XX expected (keys do not expire)",
                    shortened(option)
                )));
            }
        };
    }
    Ok(DataCommand::Set { key: rest[0].clone(), value: rest[1].clone(), only_if })
}

fn parse_scan(rest: &[Bytes]) -> Result<Command, BadCommand> {
    let cursor = number(&rest[0], "a cursor")?;
    let mut pattern = None;
    let mut count = 10;
    for option in rest[1..].chunks(2) {
        match (text(&option[0]).to_ascii_lowercase().as_str(), option.get(1)) {
            ("match", Some(value)) => pattern = Some(value.clone()),
            ("count", Some(value)) => {
                count = number(value, "a count")?.clamp(1, MAX_SCAN_COUNT as u64) as usize;
            }
            _ => {
                return Err(BadCommand(format!(
                    "SCAN option {:?} found, MATCH pattern or COUNT count expected",
                    shortened(&option[0])
                )));
            }
        }
    }
    Ok(Command::Scan { cursor, pattern, count })
}

fn number(bytes: &Bytes, what: &str) -> Result<u64, BadCommand> {
    let parsed = text(bytes).parse().ok().filter(|number| i64::try_from(*number).is_ok());
    parsed.ok_or_else(|| BadCommand(format!("{what} expected, {:?} found", shortened(bytes))))
}

fn wrong_number(name: &str) -> BadCommand {
    BadCommand(format!("wrong number of arguments for '{name}'"))
}

fn subcommand(rest: &[Bytes]) -> Option<String> {
    rest.first().map(|word| text(word).to_ascii_lowercase())
}

fn text(bytes: &Bytes) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// The first characters of what a client sent, for an error message.
fn shortened(bytes: &Bytes) -> String {
    text(&bytes.slice(..bytes.len().min(40))).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Command, BadCommand> {
        let words: Vec<Bytes> =
            words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        Command::parse(&words)
    }

    #[test]
    fn every_command_of_the_table_has_a_case() {
        for row in COMMANDS {
            let mut words = vec![row.0];
            words.resize(row.1.unsigned_abs() as usize, "0");
            let parsed = parse(&words);
            assert!(
                !matches!(&parsed, Err(e) if e.0.contains("unknown command")),
                "{words:?}: {parsed:?}"
            );
        }
    }

    #[test]
    fn wrong_requests_say_what_was_found_and_expected() {
        for (words, part) in [
            (&["FLY"][..], "unknown command \"FLY\""),
            (&["GET"], "0 found, 1 expected"),
            (&["SET", "k"], "at least 2 expected"),
            (&["SET", "k", "v", "EX", "10"], "\"EX\" found, NX or XX expected"),
            (&["MSET", "k", "v", "l"], "wrong number"),
            (&["SCAN", "x"], "a cursor expected, \"x\" found"),
            (&["SCAN", "0", "COUNT"], "SCAN option"),
            (&["SELECT", "1"], "the only one is 0"),
            (&["NOXU", "DURABILITY", "maybe"], "\"maybe\" is not a durability"),
            (&["HELLO", "3"], "NOPROTO"),
        ] {
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains(part), "{words:?}: {error}");
        }
    }
}
