//! Cluster: a master in this process and replicas in processes of their own.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use crossbeam_channel::{Receiver, unbounded};
use noxu_kv::{Config, Store};
use noxu_log::MarkPolicy;
use noxu_rep::restore::Phase;
use noxu_rep::{Durability, GroupChoice, NodeConfig, Role, StateChange};
use noxu_util::{Name, Vlsn};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

use super::Setting;
use super::restore::Report;
use crate::cli::child::ChildProcess;
use crate::cli::error::CliError;
use crate::cli::out::print_line;
use crate::workload::WorkloadError;
use crate::workload::{KEY_BYTES, VALUE_BYTES};

/// Longest time that a replica may need for anything it is asked.
const PATIENCE: Duration = Duration::from_mins(5);

/// How the nodes of a group are opened.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tuning {
    /// When tail marks are synced.
    pub(super) tail_mark: MarkPolicy,
    /// Whether the log's front stays, whatever its length.
    pub(super) keep_all: bool,
    /// Most sources of a restore besides the master; the usual ones if `None`.
    pub(super) sources: Option<usize>,
}

impl Tuning {
    /// With tail marks synced so.
    pub(super) fn of_marks(tail_mark: MarkPolicy) -> Self {
        Self { tail_mark, ..Self::default() }
    }

    fn apply(self, config: &mut NodeConfig) {
        config.log.tail_mark = self.tail_mark;
        if self.keep_all {
            config.log.retention.keep_bytes = u64::MAX;
            config.log.retention.byte_budget = None;
        }
        if let Some(sources) = self.sources {
            config.restore.sources = sources;
        }
    }
}

/// A group of nodes with a master here. Dropping it ends the replicas and removes the files.
pub(super) struct Cluster {
    // Closed in this order: the master says goodbye to replicas that are still there.
    pub(super) store: Store,
    replicas: Vec<ReplicaProcess>,
    tuning: Tuning,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts `nodes` nodes and waits until all of them take part.
    pub(super) fn start(setting: &Setting, nodes: usize, tuning: Tuning) -> Result<Self, CliError> {
        let dir = setting.temporary_dir()?;
        let members: Vec<Name> = (1..=nodes).map(node_name).collect::<Result<_, _>>()?;
        let mut config = NodeConfig::new(members[0].clone(), dir.path().join("n1"));
        // The others are there to be fed.
        config.priority = 9;
        config.group = GroupChoice::create(parse_name("bench")?, members.clone());
        tuning.apply(&mut config);
        let store = Store::open(Config::new(config))?;
        let mut cluster = Self { store, replicas: Vec::new(), tuning, dir };
        for name in &members[1..] {
            let replica = cluster.start_replica(name.as_str(), tuning)?;
            cluster.replicas.push(replica);
        }
        if !cluster.store.node().wait_role(Role::Master, PATIENCE) {
            let status = cluster.store.node().status();
            return Err(CliError::Failed(format!("n1 is {}: {}", status.role, status.reason)));
        }
        // With every voter: from here on all of them hold all there is.
        cluster.put(if nodes == 1 { Durability::LOCAL } else { Durability::ALL })?;
        Ok(cluster)
    }

    fn put(&self, durability: Durability) -> Result<(), CliError> {
        self.store.put(&[0; KEY_BYTES], &[0; VALUE_BYTES], durability)?;
        Ok(())
    }

    fn start_replica(&self, name: &str, tuning: Tuning) -> Result<ReplicaProcess, CliError> {
        let master = self.store.node().local_addr().to_string();
        let dir = self.dir.path().join(name);
        let mut replica = ReplicaProcess::spawn(name, &dir, &master, tuning)?;
        replica.ask("open", "opened")?;
        Ok(replica)
    }

    /// Kills the last replica, as kill -9 does.
    pub(super) fn kill_last(&mut self) -> Result<(), CliError> {
        match self.replicas.pop() {
            Some(mut replica) => replica.child.kill().map_err(|cause| {
                CliError::Failed(format!("killing replica {}: {cause}", replica.name))
            }),
            None => Ok(()),
        }
    }

    /// Starts the last replica again in the directory it left. Returns how long it took from there
    /// until it held everything through `last` durably, and until its state did.
    pub(super) fn catch_up(&mut self, last: Vlsn) -> Result<(Duration, Duration), CliError> {
        let name = node_name(self.replicas.len() + 2)?;
        let replica = self.start_replica(name.as_str(), self.tuning)?;
        self.replicas.push(replica);
        let Some(replica) = self.replicas.last_mut() else { unreachable!("just pushed") };
        let answer = replica.ask(&format!("reach {}", last.sequence()), "reached")?;
        let mut micros = answer.split(' ').map(|word| word.parse().map(Duration::from_micros));
        match (micros.next(), micros.next()) {
            (Some(Ok(durable)), Some(Ok(applied))) => Ok((durable, applied)),
            _ => Err(CliError::Failed(format!("replica {name} answered {answer:?}"))),
        }
    }

    /// Everything through `last` is finished on the replicas that run: in sealed segments, and in a
    /// checkpoint of the state.
    pub(super) fn settle(&mut self, last: Vlsn) -> Result<(), CliError> {
        for replica in &mut self.replicas {
            replica.ask(&format!("settle {}", last.sequence()), "settled")?;
        }
        Ok(())
    }

    /// Starts the last replica anew with nothing, has it restored from at most so many sources besides
    /// the master, and kills it. Its new directory has no vote, so its acknowledgements count for
    /// nothing.
    pub(super) fn restore(&mut self, sources: usize) -> Result<Report, CliError> {
        let name = node_name(self.replicas.len() + 2)?;
        let dir = self.dir.path().join(name.as_str());
        std::fs::remove_dir_all(&dir).map_err(CliError::file(dir))?;
        let last = self.store.node().log().positions().last;
        let tuning = Tuning { sources: Some(sources), ..self.tuning };
        let mut replica = self.start_replica(name.as_str(), tuning)?;
        let answer = replica.ask(&format!("restore {}", last.sequence()), "restored")?;
        Report::decode(&answer)
            .ok_or_else(|| CliError::Failed(format!("replica {name} answered {answer:?}")))
    }

    /// Where the nodes' directories are.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn node_name(number: usize) -> Result<Name, CliError> {
    parse_name(&format!("n{number}"))
}

fn parse_name(text: &str) -> Result<Name, CliError> {
    text.parse().map_err(|cause| CliError::Usage(format!("{cause}")))
}

/// A replica in a process of its own. Killed when dropped: its files are about to be removed, and an
/// ordered end would be for nothing.
struct ReplicaProcess {
    name: String,
    child: ChildProcess,
}

impl ReplicaProcess {
    fn spawn(name: &str, dir: &Path, master: &str, tuning: Tuning) -> Result<Self, CliError> {
        let child = ChildProcess::spawn(|command| {
            command
                .args(["bench", "--replica", name, "--replica-master", master, "--replica-dir"])
                .arg(dir)
                .args(["--replica-tail-mark", &tuning.tail_mark.to_string()])
                .args(tuning.keep_all.then_some("--replica-keep-all"))
                .args(tuning.sources.map(|sources| format!("--replica-sources={sources}")))
        })?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// Sends a line; returns what follows `expected` in the answer.
    fn ask(&mut self, question: &str, expected: &str) -> Result<String, CliError> {
        let gone = || CliError::Failed(format!("replica {} went away", self.name));
        self.child.tell(question).map_err(|_| gone())?;
        let answer = self.child.read_line().ok().flatten().ok_or_else(gone)?;
        match answer.strip_prefix(expected) {
            Some(rest) => Ok(rest.trim_start().to_owned()),
            None => Err(CliError::Failed(format!(
                "replica {} answered {question:?} with {answer:?}, not {expected:?}",
                self.name
            ))),
        }
    }
}

/// Arguments with which this program is a replica of a bench.
#[derive(Debug, Args)]
pub(super) struct ReplicaArguments {
    #[arg(long, hide = true, value_name = "NAME", requires_all = ["replica_master", "replica_dir"])]
    replica: Option<Name>,
    #[arg(long, hide = true, value_name = "ADDRESS")]
    replica_master: Option<String>,
    #[arg(long, hide = true, value_name = "DIR")]
    replica_dir: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "POLICY")]
    replica_tail_mark: Option<MarkPolicy>,
    #[arg(long, hide = true)]
    replica_keep_all: bool,
    #[arg(long, hide = true, value_name = "COUNT")]
    replica_sources: Option<usize>,
}

impl ReplicaArguments {
    pub(super) const fn is_asked_for(&self) -> bool {
        self.replica.is_some()
    }

    /// The replica's process: `open`, `reach VLSN`, `settle VLSN`, `restore VLSN`, and the end of its
    /// input.
    pub(super) fn run(self) -> Result<(), CliError> {
        let Self {
            replica: Some(name),
            replica_master: Some(master),
            replica_dir: Some(dir),
            replica_tail_mark,
            replica_keep_all: keep_all,
            replica_sources: sources,
        } = self
        else {
            unreachable!("each of the arguments requires the others")
        };
        let mut config = NodeConfig::new(name, dir);
        config.peers = vec![master];
        let tail_mark = replica_tail_mark.unwrap_or_default();
        Tuning { tail_mark, keep_all, sources }.apply(&mut config);
        let mut opened = None;
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            match (line.split_once(' '), &opened) {
                (None, None) if line == "open" => {
                    opened = Some(Opened::open(config.clone())?);
                    print_line!("opened")?;
                }
                (Some(("reach", vlsn)), Some(opened)) => {
                    let vlsn = vlsn.parse().map_err(|_| CliError::Usage(line.clone()))?;
                    let (durable, applied) = opened.reach(Vlsn::new(vlsn))?;
                    print_line!("reached {} {}", durable.as_micros(), applied.as_micros())?;
                }
                (Some(("settle", vlsn)), Some(opened)) => {
                    let vlsn = vlsn.parse().map_err(|_| CliError::Usage(line.clone()))?;
                    opened.settle(Vlsn::new(vlsn))?;
                    print_line!("settled")?;
                }
                (Some(("restore", vlsn)), Some(opened)) => {
                    let vlsn = vlsn.parse().map_err(|_| CliError::Usage(line.clone()))?;
                    print_line!("restored {}", opened.restore(Vlsn::new(vlsn))?.encode())?;
                }
                _ => return Err(CliError::Usage(format!("a replica was told {line:?}"))),
            }
        }
        Ok(())
    }
}

/// An open replica that notes how far its log is durable.
struct Opened {
    began: Instant,
    store: Store,
    /// What the node has become, one after the other.
    changes: Receiver<StateChange>,
    durable: Arc<(Mutex<Vlsn>, Condvar)>,
}

impl Opened {
    fn open(mut config: NodeConfig) -> Result<Self, WorkloadError> {
        let began = Instant::now();
        let (told, changes) = unbounded();
        config.on_state = Some(Arc::new(move |change: &StateChange| {
            let _ = told.send(change.clone()); // nobody may be interested any more
        }));
        let store = Store::open(Config::new(config))?;
        let durable: Arc<(Mutex<Vlsn>, Condvar)> = Arc::default();
        let noted = Arc::clone(&durable);
        let log = store.node().log();
        log.on_durable(move |vlsn| {
            let mut durable = noted.0.lock();
            *durable = vlsn.max(*durable);
            noted.1.notify_all();
        });
        let already = log.positions().durable;
        let mut known = durable.0.lock();
        *known = already.max(*known);
        drop(known);
        Ok(Self { began, store, changes, durable })
    }

    /// Waits until everything through `vlsn` is durable, then until it is applied; returns when
    /// that was, since the node began to open.
    fn reach(&self, vlsn: Vlsn) -> Result<(Duration, Duration), WorkloadError> {
        let mut durable = self.durable.0.lock();
        while *durable < vlsn {
            if self.durable.1.wait_until(&mut durable, self.began + PATIENCE).timed_out() {
                return Err(WorkloadError::Failed(format!("{vlsn} not durable: {durable}")));
            }
        }
        drop(durable);
        let durable_after = self.began.elapsed();
        self.store.wait_applied(vlsn, PATIENCE)?;
        Ok((durable_after, self.began.elapsed()))
    }

    /// Everything through `vlsn` is finished: sealed, and in a checkpoint.
    fn settle(&self, vlsn: Vlsn) -> Result<(), CliError> {
        self.reach(vlsn)?;
        self.store.checkpoint()?;
        let node = self.store.node();
        if !node.wait_durable(vlsn, PATIENCE) {
            return Err(CliError::Failed(format!("{vlsn} is not known durable")));
        }
        node.log().seal_through(vlsn)?;
        Ok(())
    }

    /// Asks for a restore, and waits until the node follows again and the state has `vlsn`.
    fn restore(&self, vlsn: Vlsn) -> Result<Report, CliError> {
        let node = self.store.node();
        let asked = Instant::now();
        node.request_restore()?;
        let status = loop {
            let left = (asked + PATIENCE).saturating_duration_since(Instant::now());
            let Ok(change) = self.changes.recv_timeout(left) else {
                return Err(CliError::Failed("the replica follows nobody".to_owned()));
            };
            let status = node.status();
            if change.role == Role::Replica && status.last_restore.is_some() {
                break status;
            }
        };
        let followed = asked.elapsed();
        self.store.wait_applied(vlsn, PATIENCE)?;
        let timeline = &status.restore_timeline;
        let at = |phase: Phase| {
            let missing = || CliError::Failed(format!("{phase:?} is missing in {timeline:?}"));
            timeline.began(phase).ok_or_else(missing)
        };
        // Without segments the entries are the first that comes.
        let known = at(Phase::Segments).or(at(Phase::Tail))?;
        let (tail, committed) = (at(Phase::Tail)?, at(Phase::Committed)?);
        let installed = timeline.installed.unwrap_or(committed);
        let progress = status.restore.unwrap_or_default();
        Ok(Report {
            bytes: progress.bytes_fetched,
            of_master: progress.sources.first().map_or(0, |master| master.bytes),
            manifest: known,
            base: tail.saturating_sub(known),
            tail: committed.saturating_sub(tail),
            install: installed.saturating_sub(committed),
            find: followed.saturating_sub(installed),
            apply: asked.elapsed().saturating_sub(followed),
        })
    }
}
