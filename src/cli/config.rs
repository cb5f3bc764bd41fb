//! Node settings: flags over a TOML file over defaults, checked as a whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use noxu_log::{MarkPolicy, RetentionConfig, SEGMENT_BYTES_RANGE, ScrubConfig};
use noxu_rep::ElectionTiming;
use noxu_rep::restore::session::{RestoreLimits, default_methods};
use noxu_rep::sync::method::StateSync;
use noxu_rep::sync::ranges::RangeSync;
use noxu_rep::sync::stream::StreamSync;
use noxu_util::Name;
use serde::Deserialize;

use super::error::CliError;
use super::sizes::{parse_age, parse_bytes};
use crate::door::DurabilityName;

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KindName {
    /// Votes and may become master, if the group counts it among its members
    Electable,
    /// Follows the master, never votes, and never holds what may yet be rolled back
    Secondary,
}

/// How the state comes when a node is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum MethodName {
    /// A checkpoint, and all of the log that the master has
    #[default]
    Segments,
    /// A checkpoint, and only the newest part of the log
    Snapshot,
    /// Keys and values in ranges, which hold nothing at the source, and the newest part of the log
    Ranges,
}

impl MethodName {
    /// All methods, this one first.
    pub(super) fn preferred(self) -> Vec<Arc<dyn StateSync>> {
        let wanted = match self {
            Self::Segments => StreamSync::SEGMENTS.name(),
            Self::Snapshot => StreamSync::SNAPSHOT.name(),
            Self::Ranges => RangeSync::default().name(),
        };
        let mut methods = default_methods();
        methods.sort_by_key(|method| method.name() != wanted);
        methods
    }
}

/// The flags; each may also stand in the file, with `_` for `-`.
#[derive(Debug, Default, Args)]
pub(super) struct NodeFlags {
    /// Read settings from this TOML file; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of this node, unique in its group
    #[arg(long)]
    name: Option<String>,
    /// Directory of this node: log, state, identity. Created when missing
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the other nodes of the group reach this one; port 0 takes a free one [default: 127.0.0.1:7001]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Where clients reach this node (RESP2); port 0 takes a free one [default: 127.0.0.1:7379]
    #[arg(long, value_name = "HOST:PORT")]
    client_listen: Option<String>,
    /// Address of another node of the group; repeat for each
    #[arg(long = "peer", value_name = "HOST:PORT")]
    peers: Vec<String>,
    /// Found a new group with this name, once all its members have come (on an empty directory; one
    /// node of a group does this, the others are just started)
    #[arg(long, value_name = "GROUP")]
    create_group: Option<String>,
    /// Names of all voting nodes of the new group, this one included [default: this one alone]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    members: Vec<String>,
    /// Refuse to join a group of another name
    #[arg(long, value_name = "GROUP", conflicts_with = "create_group")]
    group: Option<String>,
    /// What the node is for [default: electable]
    #[arg(long, value_enum)]
    kind: Option<KindName>,
    /// The higher, the sooner it becomes master when there is none; 0: only to hand over [default: 1]
    #[arg(long, value_name = "0-255")]
    priority: Option<u8>,
    /// A master not heard for so long is taken for gone, in milliseconds [default: 1000]
    #[arg(long, value_name = "MS")]
    failure_timeout: Option<u64>,
    /// A master that has not heard from enough voters for so long steps down, in milliseconds [default: 2000]
    #[arg(long, value_name = "MS")]
    quorum_timeout: Option<u64>,
    /// With --create-group: copies that make a commit durable [default: a majority]
    #[arg(long, value_name = "COUNT")]
    q_rep: Option<u8>,
    /// With --create-group: votes that elect a master [default: a majority]
    #[arg(long, value_name = "COUNT")]
    q_elect: Option<u8>,
    /// Durability of clients that choose none [default: majority]
    #[arg(long, value_name = "NAME")]
    durability: Option<DurabilityName>,
    /// With --create-group: size of the log's files, the same on all nodes for ever [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    segment_size: Option<String>,
    /// Log kept though nobody is known to need it, for replicas that a new master has not met [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    keep_bytes: Option<String>,
    /// Log kept though nobody is known to need it, by age [default: 0s]
    #[arg(long, value_name = "AGE")]
    keep_age: Option<String>,
    /// Log beyond which replicas that still need it lose it and are restored; never what this node needs itself [default: 16GiB]
    #[arg(long, value_name = "SIZE")]
    max_log_bytes: Option<String>,
    /// Age of log beyond which replicas that still need it lose it and are restored [default: none]
    #[arg(long, value_name = "AGE")]
    max_log_age: Option<String>,
    /// How long a voter that is away keeps its place in the log, within those limits [default: 1d]
    #[arg(long, value_name = "AGE")]
    absence_grace: Option<String>,
    /// Whether an acknowledgement waits until the log's end is marked on the disk too (strict), or
    /// rot in the last commits may be taken for a torn write (lazy) [default: strict]
    #[arg(long, value_name = "POLICY")]
    tail_mark: Option<MarkPolicy>,
    /// Bytes of finished log files read again each second in search of rot; 0 for none [default: 8MiB]
    #[arg(long, value_name = "SIZE")]
    scrub_rate: Option<String>,
    /// How long such a file is left alone once it was read [default: 7d]
    #[arg(long, value_name = "AGE")]
    scrub_interval: Option<String>,
    /// Most bytes a second that a network restore of this node takes, from all sources [default: no limit]
    #[arg(long, value_name = "SIZE")]
    restore_rate: Option<String>,
    /// Blocks of 256 KiB that a restore of this node asks each source for at once [default: 16]
    #[arg(long, value_name = "COUNT")]
    restore_window: Option<usize>,
    /// Nodes besides the master that a restore of this node takes log and state from; 0: the master alone [default: 3]
    #[arg(long, value_name = "COUNT")]
    restore_sources: Option<usize>,
    /// Most bytes of log that a restore of this node has not synced, and fetches again after a crash [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    restore_sync: Option<String>,
    /// How the state comes when this node is restored, if the master knows that too [default: segments]
    #[arg(long, value_name = "METHOD")]
    restore_method: Option<MethodName>,
    /// Client connections at a time [default: 1024]
    #[arg(long, value_name = "COUNT")]
    max_clients: Option<usize>,
    /// End when standard input ends: a child that must not outlive its parent
    #[arg(long, hide = true)]
    pub(super) exit_with_stdin: bool,
}

/// The file: the same names.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    name: Option<String>,
    dir: Option<PathBuf>,
    listen: Option<String>,
    client_listen: Option<String>,
    #[serde(default)]
    peers: Vec<String>,
    create_group: Option<String>,
    #[serde(default)]
    members: Vec<String>,
    group: Option<String>,
    kind: Option<KindName>,
    priority: Option<u8>,
    failure_timeout: Option<u64>,
    quorum_timeout: Option<u64>,
    q_rep: Option<u8>,
    q_elect: Option<u8>,
    durability: Option<String>,
    segment_size: Option<String>,
    keep_bytes: Option<String>,
    keep_age: Option<String>,
    max_log_bytes: Option<String>,
    max_log_age: Option<String>,
    absence_grace: Option<String>,
    tail_mark: Option<String>,
    scrub_rate: Option<String>,
    scrub_interval: Option<String>,
    restore_rate: Option<String>,
    restore_window: Option<usize>,
    restore_sources: Option<usize>,
    restore_sync: Option<String>,
    restore_method: Option<MethodName>,
    max_clients: Option<usize>,
}

/// What to do about the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GroupSetting {
    /// Found it.
    Create {
        /// Its name.
        name: Name,
        /// Its voters.
        members: Vec<Name>,
        /// Size of its segments.
        segment_bytes: u32,
        /// Copies that make a commit durable; 0 for a majority.
        q_rep: u8,
        /// Votes that elect a master; 0 for a majority.
        q_elect: u8,
    },
    /// Join, or be in, the one the peers are in.
    Join {
        /// Its name must be this.
        name: Option<Name>,
    },
}

/// Settings of a node that make sense together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeSettings {
    /// Name.
    pub(super) name: Name,
    /// Directory.
    pub(super) dir: PathBuf,
    /// Address for peers.
    pub(super) listen: String,
    /// Address for clients.
    pub(super) client_listen: String,
    /// Addresses of peers.
    pub(super) peers: Vec<String>,
    /// Group.
    pub(super) group: GroupSetting,
    /// What it is for.
    pub(super) kind: KindName,
    /// How soon it becomes master.
    pub(super) priority: u8,
    /// How long it waits for what in elections.
    pub(super) election: ElectionTiming,
    /// Default durability of clients.
    pub(super) durability: DurabilityName,
    /// How much log is kept.
    pub(super) kept: KeptLog,
    /// When the log's tail mark is synced.
    pub(super) tail_mark: MarkPolicy,
    /// How sealed segments are read again, if they are.
    pub(super) scrub: Option<ScrubConfig>,
    /// How much of what a restore of this node takes.
    pub(super) restore: RestoreLimits,
    /// By which method this node is restored, if that goes.
    pub(super) restore_method: MethodName,
    /// Client connections.
    pub(super) max_clients: usize,
}

/// How much log is kept, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeptLog {
    /// Bytes kept though nobody is known to need them.
    pub(super) keep_bytes: u64,
    /// Age of what is kept so.
    pub(super) keep_age: Duration,
    /// Bytes beyond which nobody's place is held.
    pub(super) max_bytes: Option<u64>,
    /// Age beyond which nobody's place is held.
    pub(super) max_age: Option<Duration>,
    /// How long the place of a voter that is away is held.
    pub(super) absence_grace: Duration,
}

/// How long a voter may be away and still find its place, unless its node is told otherwise.
const DEFAULT_ABSENCE_GRACE: Duration = Duration::from_hours(24);

impl NodeFlags {
    /// Merges flags, file and defaults, and checks the whole.
    pub(super) fn settings(&self) -> Result<NodeSettings, CliError> {
        let file = match &self.config {
            Some(path) => NodeFile::read(path)?,
            None => NodeFile::default(),
        };
        let missing =
            |flag: &str| CliError::Usage(format!("{flag} is missing (see noxu node --help)"));
        let name = name(
            "--name",
            self.name.as_ref().or(file.name.as_ref()).ok_or_else(|| missing("--name"))?,
        )?;
        let restore = self.restore_limits(&file)?;
        let dir = self.dir.clone().or(file.dir).ok_or_else(|| missing("--dir"))?;
        let kind = self.kind.or(file.kind).unwrap_or(KindName::Electable);
        let usual = ElectionTiming::default();
        let timeout = |flag, own: Option<u64>, file: Option<u64>, usual| match own.or(file) {
            Some(0) => Err(CliError::Usage(format!("{flag} 0 found, 1 or more expected"))),
            Some(millis) => Ok(Duration::from_millis(millis)),
            None => Ok(usual),
        };
        let failure_timeout = timeout(
            "--failure-timeout",
            self.failure_timeout,
            file.failure_timeout,
            usual.failure_timeout,
        )?;
        let quorum_timeout = timeout(
            "--quorum-timeout",
            self.quorum_timeout,
            file.quorum_timeout,
            // Whoever gives only the other means both.
            usual.quorum_timeout.max(failure_timeout),
        )?;
        let election = ElectionTiming { failure_timeout, quorum_timeout, ..usual };
        let peers = if self.peers.is_empty() { file.peers } else { self.peers.clone() };
        let durability = match (self.durability, file.durability) {
            (Some(durability), _) => durability,
            (None, Some(text)) => text.parse().map_err(|e: crate::door::BadDurability| {
                CliError::Usage(format!("durability: {e}"))
            })?,
            (None, None) => DurabilityName::default(),
        };
        let tail_mark = match (self.tail_mark, file.tail_mark) {
            (Some(policy), _) => policy,
            (None, Some(text)) => {
                text.parse().map_err(|e| CliError::Usage(format!("tail_mark: {e}")))?
            }
            (None, None) => MarkPolicy::default(),
        };
        let create = self.create_group.as_ref().or(file.create_group.as_ref());
        let members = if self.members.is_empty() { &file.members } else { &self.members };
        let segment_size = self.segment_size.as_ref().or(file.segment_size.as_ref());
        let q_rep = self.q_rep.or(file.q_rep);
        let q_elect = self.q_elect.or(file.q_elect);
        let group = if let Some(group) = create {
            if kind != KindName::Electable {
                return Err(CliError::Usage("--create-group needs an electable node".to_owned()));
            }
            let segment_bytes = match segment_size {
                Some(text) => parse_bytes(text)
                    .map_err(|e| CliError::Usage(format!("--segment-size: {e}")))?,
                None => 64 << 20,
            };
            let lawful = SEGMENT_BYTES_RANGE;
            let segment_bytes = u32::try_from(segment_bytes)
                .ok()
                .filter(|bytes| lawful.contains(bytes))
                .ok_or_else(|| {
                    let (start, end) = lawful.into_inner();
                    CliError::Usage(format!(
                        "--segment-size {segment_bytes} found, {start} to {end} expected"
                    ))
                })?;
            GroupSetting::Create {
                name: self::name("--create-group", group)?,
                members: voters(&name, members)?,
                segment_bytes,
                q_rep: q_rep.unwrap_or(0),
                q_elect: q_elect.unwrap_or(0),
            }
        } else {
            if !members.is_empty() || segment_size.is_some() || q_rep.is_some() || q_elect.is_some()
            {
                return Err(CliError::Usage(
                    "--members, --segment-size, --q-rep and --q-elect belong to --create-group: an \
                     existing group has its own"
                        .to_owned(),
                ));
            }
            let group = self.group.as_ref().or(file.group.as_ref());
            GroupSetting::Join {
                name: group.map(|group| self::name("--group", group)).transpose()?,
            }
        };
        let defaults = RetentionConfig::default();
        let bytes = |flag: &str, own: &Option<String>, file: &Option<String>| {
            setting(flag, own.as_ref().or(file.as_ref()), parse_bytes)
        };
        let age = |flag: &str, own: &Option<String>, file: &Option<String>| {
            setting(flag, own.as_ref().or(file.as_ref()), parse_age)
        };
        let max_bytes = bytes("--max-log-bytes", &self.max_log_bytes, &file.max_log_bytes)?
            .or(defaults.byte_budget);
        let kept = KeptLog {
            // Whoever gives only the upper limit means that one.
            keep_bytes: bytes("--keep-bytes", &self.keep_bytes, &file.keep_bytes)?
                .unwrap_or(defaults.keep_bytes.min(max_bytes.unwrap_or(u64::MAX))),
            keep_age: age("--keep-age", &self.keep_age, &file.keep_age)?
                .unwrap_or(defaults.keep_age),
            max_bytes,
            max_age: age("--max-log-age", &self.max_log_age, &file.max_log_age)?
                .or(defaults.age_budget),
            absence_grace: age("--absence-grace", &self.absence_grace, &file.absence_grace)?
                .unwrap_or(DEFAULT_ABSENCE_GRACE),
        };
        let unhurried = ScrubConfig::default();
        let interval = age("--scrub-interval", &self.scrub_interval, &file.scrub_interval)?
            .unwrap_or(unhurried.interval);
        let scrub = ScrubConfig {
            bytes_per_second: bytes("--scrub-rate", &self.scrub_rate, &file.scrub_rate)?
                .unwrap_or(unhurried.bytes_per_second),
            interval,
            // Whoever wants it often does not wait for the first time either.
            delay: unhurried.delay.min(interval),
        };
        if let Some(max) = kept.max_bytes
            && kept.keep_bytes > max
        {
            return Err(CliError::Usage(format!(
                "--keep-bytes {} is more than --max-log-bytes {max}",
                kept.keep_bytes
            )));
        }
        if let Some(max) = kept.max_age
            && kept.keep_age > max
        {
            return Err(CliError::Usage(format!(
                "--keep-age {:?} is more than --max-log-age {max:?}",
                kept.keep_age
            )));
        }
        Ok(NodeSettings {
            name,
            dir,
            listen: self.listen.clone().or(file.listen).unwrap_or("127.0.0.1:7001".to_owned()),
            client_listen: self
                .client_listen
                .clone()
                .or(file.client_listen)
                .unwrap_or("127.0.0.1:7379".to_owned()),
            peers,
            group,
            kind,
            priority: self.priority.or(file.priority).unwrap_or(1),
            election,
            durability,
            kept,
            tail_mark,
            scrub: (scrub.bytes_per_second > 0).then_some(scrub),
            restore,
            restore_method: self.restore_method.or(file.restore_method).unwrap_or_default(),
            max_clients: self.max_clients.or(file.max_clients).unwrap_or(1024),
        })
    }
}

impl NodeFlags {
    fn restore_limits(&self, file: &NodeFile) -> Result<RestoreLimits, CliError> {
        let unlimited = RestoreLimits::default();
        let at_least_one = |flag: &str, found: u64| {
            let few = || CliError::Usage(format!("{flag} {found} found, 1 or more expected"));
            if found == 0 { Err(few()) } else { Ok(found) }
        };
        let bytes = |flag: &str, own: &Option<String>, file: &Option<String>| {
            let found = setting(flag, own.as_ref().or(file.as_ref()), parse_bytes)?;
            found.map(|found| at_least_one(flag, found)).transpose()
        };
        let rate = bytes("--restore-rate", &self.restore_rate, &file.restore_rate)?;
        let sync = bytes("--restore-sync", &self.restore_sync, &file.restore_sync)?;
        let window = self.restore_window.or(file.restore_window).unwrap_or(unlimited.window);
        let sources = self.restore_sources.or(file.restore_sources);
        Ok(RestoreLimits {
            bytes_per_second: rate,
            window: at_least_one("--restore-window", window as u64)? as usize,
            sources: sources.unwrap_or(unlimited.sources),
            sync_bytes: sync.unwrap_or(unlimited.sync_bytes),
            ..unlimited
        })
    }
}

impl NodeFile {
    fn read(path: &Path) -> Result<Self, CliError> {
        let text = std::fs::read_to_string(path).map_err(CliError::file(path))?;
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            CliError::Usage(format!("{}:{line}: {}", path.display(), error.message()))
        })
    }
}

/// Reads the text given for `flag`, if there is one.
fn setting<T>(
    flag: &str,
    text: Option<&String>,
    parse: fn(&str) -> Result<T, String>,
) -> Result<Option<T>, CliError> {
    text.map(|text| parse(text).map_err(|e| CliError::Usage(format!("{flag}: {e}")))).transpose()
}

fn name(flag: &str, text: &str) -> Result<Name, CliError> {
    text.parse().map_err(|e| CliError::Usage(format!("{flag}: {e}")))
}

fn voters(own: &Name, texts: &[String]) -> Result<Vec<Name>, CliError> {
    let mut members = Vec::new();
    for text in texts {
        let member = name("--members", text)?;
        if members.contains(&member) {
            return Err(CliError::Usage(format!("--members names {member} twice")));
        }
        members.push(member);
    }
    if members.is_empty() {
        members.push(own.clone());
    }
    if !members.contains(own) {
        let listed = members.iter().map(Name::as_str).collect::<Vec<_>>().join(",");
        return Err(CliError::Usage(format!("--members {listed} does not hold this node, {own}")));
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> NodeFlags {
        NodeFlags { name: Some("n1".into()), dir: Some("d".into()), ..NodeFlags::default() }
    }

    fn error(flags: &NodeFlags) -> String {
        flags.settings().unwrap_err().to_string()
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(
            &path,
            "name = \"n9\"\ndir = \"data\"\npriority = 4\nquorum_timeout = 700\ncreate_group = \"g\"\n\
             members = [\"n1\", \"n2\"]\nsegment_size = \"1MiB\"\ndurability = \"local\"\n\
             keep_bytes = \"2MiB\"\nkeep_age = \"1h\"\nmax_log_bytes = \"8MiB\"\n\
             tail_mark = \"lazy\"\nscrub_rate = \"1MiB\"\nscrub_interval = \"1d\"\n\
             restore_rate = \"10MiB\"\nrestore_window = 4\nrestore_sources = 0\n\
             restore_method = \"ranges\"\n",
        )
        .unwrap();
        let flags = NodeFlags {
            config: Some(path),
            name: Some("n1".into()),
            priority: Some(7),
            failure_timeout: Some(300),
            q_elect: Some(2),
            max_log_bytes: Some("9MiB".into()),
            scrub_interval: Some("5s".into()),
            restore_window: Some(9),
            restore_sync: Some("1MiB".into()),
            ..NodeFlags::default()
        };
        let settings = flags.settings().unwrap();
        let kept = &settings.kept;
        assert_eq!((kept.keep_bytes, kept.max_bytes), (2 << 20, Some(9 << 20)));
        assert_eq!((kept.keep_age, kept.max_age), (Duration::from_hours(1), None));
        assert_eq!(settings.name.as_str(), "n1");
        assert_eq!(settings.dir, Path::new("data"));
        assert_eq!((settings.priority, settings.kind), (7, KindName::Electable));
        let election = settings.election;
        assert_eq!(election.failure_timeout, Duration::from_millis(300));
        assert_eq!(election.quorum_timeout, Duration::from_millis(700));
        assert_eq!(settings.durability, DurabilityName::Local);
        assert_eq!(settings.tail_mark, MarkPolicy::Lazy);
        let seconds = Duration::from_secs(5);
        let scrub = ScrubConfig { bytes_per_second: 1 << 20, interval: seconds, delay: seconds };
        assert_eq!(settings.scrub, Some(scrub));
        let restore = settings.restore;
        assert_eq!((restore.bytes_per_second, restore.sources), (Some(10 << 20), 0));
        assert_eq!((restore.window, restore.sync_bytes), (9, 1 << 20));
        let methods = settings.restore_method.preferred();
        let methods: Vec<_> = methods.iter().map(|method| method.name().to_string()).collect();
        assert_eq!(methods, ["ranges", "segments", "snapshot"]);
        assert_eq!(self::flags().settings().unwrap().restore, RestoreLimits::default());
        let never = NodeFlags { scrub_rate: Some("0".into()), ..self::flags() };
        assert_eq!(never.settings().unwrap().scrub, None);
        assert_eq!(self::flags().settings().unwrap().scrub, Some(ScrubConfig::default()));
        assert_eq!(self::flags().settings().unwrap().tail_mark, MarkPolicy::Strict);
        let GroupSetting::Create { segment_bytes, members, q_rep, q_elect, .. } = settings.group
        else {
            panic!("the file creates a group")
        };
        assert_eq!((segment_bytes, members.len()), (1 << 20, 2));
        assert_eq!((q_rep, q_elect), (0, 2));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, "name = \"n1\"\nlisten_on = \"x\"\n").unwrap();
        let message = error(&NodeFlags { config: Some(path), ..NodeFlags::default() });
        assert!(message.contains("node.toml:2") && message.contains("listen_on"), "{message}");
    }

    #[test]
    fn settings_that_make_no_sense_together_are_refused() {
        assert!(error(&NodeFlags::default()).contains("--name is missing"));
        assert!(error(&NodeFlags { failure_timeout: Some(0), ..flags() }).contains("1 or more"));
        assert!(error(&NodeFlags { q_rep: Some(1), ..flags() }).contains("--create-group"));
        assert!(
            error(&NodeFlags { members: vec!["n1".into()], ..flags() }).contains("--create-group")
        );
        let create = || NodeFlags { create_group: Some("g".into()), ..flags() };
        let secondary = NodeFlags { kind: Some(KindName::Secondary), ..create() };
        assert!(error(&secondary).contains("electable"));
        let foreign = NodeFlags { members: vec!["n2".into()], ..create() };
        assert!(error(&foreign).contains("does not hold this node, n1"));
        let much = NodeFlags { keep_bytes: Some("17GiB".into()), ..flags() };
        assert!(error(&much).contains("more than --max-log-bytes"));
        let ages = ("2d".to_owned(), "36h".to_owned());
        let old = NodeFlags { keep_age: Some(ages.0), max_log_age: Some(ages.1), ..flags() };
        assert!(error(&old).contains("more than --max-log-age"));
        let unit = NodeFlags { absence_grace: Some("7".into()), ..flags() };
        assert!(error(&unit).contains("--absence-grace"));
        let none = NodeFlags { restore_window: Some(0), ..flags() };
        assert!(error(&none).contains("--restore-window 0 found"));
        let none = NodeFlags { restore_rate: Some("0".into()), ..flags() };
        assert!(error(&none).contains("--restore-rate 0 found"));
        let tiny = NodeFlags { segment_size: Some("1".into()), ..create() };
        assert!(error(&tiny).contains("4096 to 1073741824"));
        let huge = NodeFlags { segment_size: Some("2GiB".into()), ..create() };
        assert!(error(&huge).contains("4096 to 1073741824"));
        assert!(error(&NodeFlags { name: Some("a b".into()), ..flags() }).contains("\"a b\""));
    }
}
