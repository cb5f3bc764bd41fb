//! Scenes of a group: three processes, load, a killed replica, a diverged master.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::cluster::{NAMES, NodeProcess, StartAs, node_dir};
use super::input::{Input, Piece};
use super::load::{Contents, Loader};
use super::table::{Table, show_micros};
use super::verify::{local_writes_accounted_for, logs_are_identical, nodes_agree};
use super::{Demo, say, scene_title};
use crate::cli::error::CliError;
use crate::cli::progress::count_bar;
use crate::cli::sizes::show_count;

/// Transactions that the doomed master commits for itself alone.
const LOCAL_COMMITS: usize = 500;
/// Transactions that the next master commits with a majority.
const NEXT_COMMITS: usize = 500;

/// The group as it runs through the scenes.
pub(super) struct Group<'a> {
    dir: PathBuf,
    input: &'a Input,
    /// In the order of [`NAMES`]; `None` while it is down.
    nodes: [Option<NodeProcess>; 3],
    /// What a majority acknowledged.
    acknowledged: Contents,
    /// What only one node has committed.
    local: Vec<Piece>,
}

impl<'a> Group<'a> {
    pub(super) fn new(dir: &Path, input: &'a Input) -> Self {
        Self {
            dir: dir.to_owned(),
            input,
            nodes: [None, None, None],
            acknowledged: Contents::new(),
            local: Vec::new(),
        }
    }

    fn node(&self, index: usize) -> Result<&NodeProcess, CliError> {
        self.nodes[index]
            .as_ref()
            .ok_or_else(|| CliError::Failed(format!("{} is down", NAMES[index])))
    }

    fn take(&mut self, index: usize) -> Result<NodeProcess, CliError> {
        self.nodes[index]
            .take()
            .ok_or_else(|| CliError::Failed(format!("{} is down", NAMES[index])))
    }

    fn start(&mut self, index: usize, start_as: StartAs<'_>) -> Result<(), CliError> {
        self.nodes[index] = Some(NodeProcess::start(&self.dir, NAMES[index], start_as)?);
        Ok(())
    }

    /// Three processes; majority-durable load; a replica is killed in the middle and catches up.
    pub(super) fn load(&mut self, demo: &Demo, table: &mut Table) -> Result<(), CliError> {
        scene_title(2, "Three nodes: load with majority durability, kill -9 a replica, catch up");
        self.start(0, StartAs::Founder)?;
        let master = self.node(0)?.peer_addr.clone();
        self.start(1, StartAs::Replica { peer: &master })?;
        self.start(2, StartAs::Replica { peer: &master })?;
        for node in self.nodes.iter().flatten() {
            say!("{}: peers at {}, clients at {}", node.name, node.peer_addr, node.client_addr);
        }
        let bar = count_bar("majority commits", demo.commits);
        let mut loader = Loader::new(self.node(0)?.client()?, "majority")?;
        let mut pieces = self.input.pieces();
        let (mut killed_at, mut catch_up) = (None, None);
        while loader.commits() < demo.commits || loader.bytes < demo.size {
            loader.put(pieces.next_piece()?)?;
            bar.set_position(loader.commits());
            let share = (loader.commits() as f64 / demo.commits as f64)
                .min(loader.bytes as f64 / demo.size as f64);
            if killed_at.is_none() && share >= 0.3 {
                self.take(2)?.kill()?;
                killed_at = Some(loader.commits());
            }
            if catch_up.is_none() && share >= 0.7 {
                let target = self.node(0)?.info_number("last_vlsn")?;
                let started = Instant::now();
                self.start(2, StartAs::Replica { peer: &master })?;
                let behind = target - self.node(2)?.info_number("last_vlsn")?;
                catch_up = Some((started, target, behind));
            }
        }
        loader.finish()?;
        bar.finish_and_clear();
        let elapsed = loader.elapsed();
        let rounds = pieces.round + 1;
        say!(
            "{} commits in {rounds} rounds over the input; n3 was killed after {}",
            show_count(loader.commits()),
            show_count(killed_at.unwrap_or(0)),
        );
        table.rate("group: majority commits, 64 in flight", loader.commits(), "commits", elapsed);
        table.throughput("group: majority commits", loader.bytes, elapsed);
        table.row("group: commit latency p50", show_micros(loader.quantile_us(0.5)));
        table.row("group: commit latency p99", show_micros(loader.quantile_us(0.99)));
        let last = loader.last_vlsn()?;
        if let Some((started, target, behind)) = catch_up {
            let n3 = self.node(2)?;
            n3.wait_applied(target)?;
            let time = started.elapsed();
            say!(
                "n3 came back {} entries behind and had them {} after its start, while the load went on",
                show_count(behind.max(0) as u64),
                show_micros(time.as_micros() as u64)
            );
            table.time("catch-up: process start to caught up", time);
            table.rate("catch-up: while loading", behind.max(0) as u64, "entries", time);
        }
        for node in self.nodes.iter().flatten() {
            node.wait_applied(last)?;
        }
        self.acknowledged.append(&mut loader.acknowledged);
        let nodes: Vec<_> = self.nodes.iter().flatten().collect();
        nodes_agree(&nodes, &self.acknowledged)?;
        Ok(())
    }

    /// A master commits alone, dies, and comes back to a group that has moved on.
    pub(super) fn diverge(&mut self, table: &mut Table) -> Result<(), CliError> {
        scene_title(
            3,
            "Divergence: a master writes alone, dies, another takes over, the first returns",
        );
        let stop = self.take(1)?.stop()?.max(self.take(2)?.stop()?);
        table.time("orderly shutdown of a replica", stop);
        let mut loader = Loader::new(self.node(0)?.client()?, "local")?;
        let mut pieces = self.input.pieces();
        for index in 0..LOCAL_COMMITS {
            let mut piece = pieces.next_piece()?;
            piece.key = format!("local/{index:04}/{}", piece.key);
            self.local.push(piece.clone());
            loader.put(piece)?;
        }
        loader.finish()?;
        drop(loader);
        let alone = self.node(0)?.info_number("last_vlsn")?;
        self.take(0)?.kill()?;
        say!(
            "n1 committed {LOCAL_COMMITS} LOCAL transactions that reached nobody, and was killed at entry {alone}"
        );

        self.start(1, StartAs::Master { term: 2, peer: None })?;
        let master = self.node(1)?.peer_addr.clone();
        self.start(2, StartAs::Replica { peer: &master })?;
        let mut loader = Loader::new(self.node(1)?.client()?, "majority")?;
        for index in 0..NEXT_COMMITS {
            let mut piece = pieces.next_piece()?;
            piece.key = format!("next/{index:04}/{}", piece.key);
            loader.put(piece)?;
        }
        loader.finish()?;
        let last = loader.last_vlsn()?;
        self.acknowledged.append(&mut loader.acknowledged);
        say!("n2 is master of term 2 and has committed {NEXT_COMMITS} transactions with n3");

        let started = Instant::now();
        self.start(0, StartAs::Replica { peer: &master })?;
        self.node(0)?.wait_applied(last)?;
        let rejoined = started.elapsed();
        let info = self.node(0)?.info()?;
        let say_of = |key: &str| info.get(key).cloned().unwrap_or_else(|| "none".to_owned());
        let entries: u64 = say_of("rollback_entries").parse().unwrap_or(0);
        if entries == 0 {
            return Err(CliError::Differs("n1 came back and rolled nothing back".to_owned()));
        }
        say!(
            "n1 found the matchpoint {} in {} round trip(s)",
            say_of("rollback_matchpoint"),
            say_of("rollback_round_trips")
        );
        say!("n1 rolled {entries} entries back, in place, into {}", say_of("rollback_lost_file"));
        table.row(
            "rejoin: matchpoint found in",
            format!("{} round trips", say_of("rollback_round_trips")),
        );
        table.row("rejoin: rolled back", format!("{entries} entries"));
        table.time("rejoin: process start to caught up", rejoined);
        let nodes: Vec<_> = self.nodes.iter().flatten().collect();
        let held = nodes_agree(&nodes, &self.acknowledged)?;
        let (kept, lost) =
            local_writes_accounted_for(&node_dir(&self.dir, NAMES[0]), &self.local, &held)?;
        say!("LOCAL transactions: {kept} in the store, {lost} in the lost-entries file, none gone");
        Ok(())
    }

    /// Stops everybody in order and compares the logs.
    pub(super) fn finish(mut self) -> Result<(), CliError> {
        scene_title(4, "Shutdown in order, and the logs compared byte by byte");
        // Replicas last: the master leaves when they have everything.
        for index in [1, 0, 2] {
            self.take(index)?.stop()?;
        }
        logs_are_identical(&self.dir)?;
        Ok(())
    }
}
