//! Scenes of a group: three node processes, loaded, killed, diverged, brought together again.

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::input::{Input, Piece, Pieces};
use super::load::{CONNECTIONS, Expected, IN_FLIGHT, Loaded, Source, load};
use super::process::{NodeProcess, PATIENCE};
use super::table::Table;
use super::{Demo, failover, say, scene_title, verify};
use crate::cli::error::CliError;
use crate::cli::progress::{byte_bar, count_bar};
use crate::cli::sizes::{show_bytes, show_count};

/// Segments so small that even a short demo rolls, seals, drops and restores some.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=4 << 20;
/// Size of the values that fill the log before a restore.
const BULK_BYTES: usize = 64 << 10;
/// LOCAL commits that reach nobody.
const LONELY_COMMITS: u64 = 500;

fn given_up() -> CliError {
    CliError::Failed("the load was given up".to_owned())
}

/// The group and what it must hold.
pub(super) struct Group<'a> {
    demo: &'a Demo,
    pieces: Pieces<'a>,
    nodes: [NodeProcess; 3],
    expected: Expected,
}

const N1: usize = 0;
const N2: usize = 1;
const N3: usize = 2;

impl<'a> Group<'a> {
    pub(super) fn new(demo: &'a Demo, input: &'a Input, dir: &Path) -> Self {
        Self {
            demo,
            pieces: input.pieces(),
            nodes: ["n1", "n2", "n3"].map(|name| NodeProcess::new(name, dir)),
            expected: Expected::default(),
        }
    }

    /// Plays all scenes, stops the nodes and compares their logs.
    pub(super) fn play(&mut self, table: &mut Table) -> Result<(), CliError> {
        scene_title(2, "Three nodes: n1 founds a group, n2 and n3 join it")?;
        self.found(table)?;
        scene_title(
            3,
            "Majority-durable load; n3 is killed in the middle (SIGKILL) and comes back",
        )?;
        self.load_and_kill(table)?;
        scene_title(4, "Divergence: n1 writes what reaches nobody, dies, and comes back")?;
        self.diverge(table)?;
        scene_title(
            5,
            "Network restore: the front of the log is dropped while a node is away; it comes back",
        )?;
        self.restore(table)?;
        scene_title(
            6,
            "Failover: masters are killed, closed and hung while clients write without pause",
        )?;
        self.fail_over(table)?;
        scene_title(7, "Verification")?;
        self.verify(table)
    }

    /// Majority commits of what `source` gives, at node `master`.
    fn write_to(&mut self, master: usize, source: &mut Source<'_>) -> Result<Loaded, CliError> {
        load(&self.nodes[master], "majority", source, &mut self.expected.majority, |_| Ok(()))
    }

    fn segment_bytes(&self) -> u64 {
        (self.demo.size / 16).clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end())
    }

    fn start_again(&mut self, which: usize) -> Result<Duration, CliError> {
        start_again(&mut self.nodes, which)
    }

    /// Waits until one of the running nodes is master.
    fn master(&self) -> Result<usize, CliError> {
        let started = Instant::now();
        loop {
            for (which, node) in self.nodes.iter().enumerate().filter(|(_, n)| n.is_running()) {
                if node.info()?.text("role") == Some("master") {
                    return Ok(which);
                }
            }
            if started.elapsed() > PATIENCE {
                return Err(CliError::Failed(format!("no master within {PATIENCE:?}")));
            }
            // A question to other processes: nothing to wait for but time.
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    fn found(&mut self, table: &mut Table) -> Result<(), CliError> {
        let started = Instant::now();
        let segment = self.segment_bytes();
        self.nodes[N1].start(&[
            "--create-group",
            "demo",
            "--members",
            "n1,n2,n3",
            "--segment-size",
            &segment.to_string(),
            // For the scenes in which it is to be master, and stay it for a while though it is alone.
            "--priority",
            "3",
            "--quorum-timeout",
            "60000",
        ])?;
        self.start_again(N2)?;
        self.start_again(N3)?;
        self.nodes[N1].wait_for("two connected replicas", |info| {
            (info.text("connected_slaves") == Some("2")).then_some(())
        })?;
        table.time("three processes: from nothing to a group", started.elapsed());
        for node in &self.nodes {
            say!("{}: peers at {}, clients at {}", node.name, node.peer_addr, node.client_addr)?;
        }
        Ok(())
    }

    fn load_and_kill(&mut self, table: &mut Table) -> Result<(), CliError> {
        let Self { demo, pieces, nodes, expected } = self;
        let [n1, n2, n3] = nodes;
        let bar = count_bar("loading", demo.commits);
        let (mut given, mut given_bytes) = (0_u64, 0_u64);
        let (kill_at, restart_at) = (demo.commits / 3, demo.commits * 2 / 3);
        let mut source = || {
            if given >= demo.commits && given_bytes >= demo.size {
                return Ok(None);
            }
            let piece = pieces.next_piece()?;
            given += 1;
            given_bytes += piece.value.len() as u64;
            Ok(Some(piece))
        };
        let peers = [n1.peer_addr.clone(), n2.peer_addr.clone()];
        let (n1, n3_again) = (&*n1, &mut *n3);
        let (reached, milestones) = bounded(2);
        let (loaded, caught_up) = std::thread::scope(|scope| {
            // What happens to n3 happens while the load goes on.
            let fate = scope.spawn(move || {
                let killed_at = milestones.recv().map_err(|_| given_up())?;
                n3_again.kill();
                let _ = milestones.recv().map_err(|_| given_up())?;
                let last = n1.info()?.number("last_vlsn").unwrap_or(0);
                let started = Instant::now();
                n3_again.start(&["--peer", &peers[0], "--peer", &peers[1]])?;
                let start = n3_again.wait_for("syncup", |info| info.number("syncup_start"))?;
                n3_again.wait_applied(last)?;
                Ok::<_, CliError>((killed_at, start, last, started.elapsed()))
            });
            let loaded = load(n1, "majority", &mut source, &mut expected.majority, |loaded| {
                bar.set_length(demo.commits.max(loaded.commits));
                bar.set_position(loaded.commits);
                if loaded.commits == kill_at || loaded.commits == restart_at {
                    let _ = reached.send(loaded.commits);
                }
                Ok(())
            });
            drop(reached);
            let fate = fate.join().unwrap_or_else(|_| Err(given_up()));
            Ok::<_, CliError>((loaded?, fate?))
        })?;
        bar.finish_and_clear();
        let rounds = pieces.round;
        say!(
            "{} commits, {} acknowledged by a majority, {rounds} rounds over the input",
            show_count(loaded.commits),
            show_bytes(loaded.bytes)
        )?;
        let label = format!("load, {CONNECTIONS} connections, {IN_FLIGHT} in flight each");
        table.rate(&label, loaded.commits, "commits", loaded.time);
        table.throughput(&label, loaded.bytes, loaded.time);
        table.latency(&label, &loaded.micros);
        let (killed_at, from, to, time) = caught_up;
        say!(
            "n3 killed at commit {}, back while the load went on: entries {from} to {to} in {time:.2?}",
            show_count(killed_at)
        )?;
        table.rate(
            "catch-up under load, start of the process to applied",
            (to + 1 - from).max(0) as u64,
            "entries",
            time,
        );
        let last = n1.info()?.number("last_vlsn").unwrap_or(0);
        n2.wait_applied(last)?;
        n3.wait_applied(last)
    }

    fn diverge(&mut self, table: &mut Table) -> Result<(), CliError> {
        self.nodes[N2].kill();
        self.nodes[N3].kill();
        let mut number = 0;
        let mut source = || {
            number += 1;
            let piece = Piece {
                key: format!("lonely/{number:06}"),
                value: format!("written by n1 alone, {number}").into_bytes(),
            };
            Ok((number <= LONELY_COMMITS).then_some(piece))
        };
        let alone =
            load(&self.nodes[N1], "local", &mut source, &mut self.expected.local, |_| Ok(()))?;
        let lonely_last = self.nodes[N1].info()?.number("last_vlsn").unwrap_or(0);
        say!(
            "n2 and n3 killed; n1 alone wrote {} LOCAL commits, through entry {lonely_last}",
            alone.commits
        )?;
        table.rate("LOCAL commits, no replica connected", alone.commits, "commits", alone.time);
        self.nodes[N1].kill();

        let started = Instant::now();
        self.start_again(N2)?;
        self.start_again(N3)?;
        let master = self.master()?;
        let mut number = 0;
        let mut source = || {
            number += 1;
            let piece = Piece {
                key: format!("after/{number:06}"),
                value: format!("written without n1, {number}").into_bytes(),
            };
            Ok((number <= LONELY_COMMITS).then_some(piece))
        };
        self.write_to(master, &mut source)?;
        let info = self.nodes[master].info()?;
        say!(
            "n1 killed, n2 and n3 back: {} is master of term {} and wrote {LONELY_COMMITS} majority \
             commits",
            self.nodes[master].name,
            info.text("term").unwrap_or("?")
        )?;
        table.time(
            "two voters of three, start of their processes to 500 majority commits",
            started.elapsed(),
        );

        let last = info.number("last_vlsn").unwrap_or(0);
        let started = Instant::now();
        self.start_again(N1)?;
        self.nodes[N1].wait_applied(last)?;
        let back = started.elapsed();
        let info = self.nodes[N1].info()?;
        let field = |key| {
            info.number(key).ok_or_else(|| {
                CliError::Differs(format!("n1 came back and reports no {key}: nothing rolled back"))
            })
        };
        let rolled_back = field("rollback_entries")?;
        say!(
            "n1 back: matchpoint {}, {} round trip(s), {rolled_back} entries rolled back",
            field("rollback_matchpoint")?,
            field("rollback_round_trips")?
        )?;
        say!("lost entries: {}", info.text("rollback_lost_file").unwrap_or("none"))?;
        table.time("deposed master: start to rolled back and caught up", back);
        let saved = verify::lost_bodies(&self.nodes)?.len() as i64;
        if saved != rolled_back {
            return Err(CliError::Differs(format!(
                "{rolled_back} entries were rolled back, {saved} are in lost-entries files"
            )));
        }
        Ok(())
    }

    fn restore(&mut self, table: &mut Table) -> Result<(), CliError> {
        let master = self.master()?;
        let away = if master == N3 { N2 } else { N3 };
        let other = 3 - master - away;
        let gone = self.nodes[away].info()?.number("last_vlsn").unwrap_or(0);
        self.nodes[away].kill();
        say!("{}: killed after entry {gone}", self.nodes[away].name)?;
        // Only whole files of the log are dropped: enough for some.
        let (mut number, mut given, wanted) = (0_u64, 0_u64, 3 * self.segment_bytes());
        let mut source = || {
            if given >= wanted {
                return Ok(None);
            }
            number += 1;
            given += BULK_BYTES as u64;
            let value =
                format!("written while a node was away, {number}: ").repeat(BULK_BYTES / 40);
            Ok(Some(Piece { key: format!("missed/{number:06}"), value: value.into_bytes() }))
        };
        self.write_to(master, &mut source)?;
        // What is loaded so far ends up in the checkpoint, what follows in segments above it.
        for which in [master, other] {
            let mut client = self.nodes[which].client()?;
            let checkpoint = client.call_integer(&[b"NOXU", b"CHECKPOINT"])?;
            let first = client.call_integer(&[b"NOXU", b"DROP-FRONT"])?;
            if first <= gone + 1 {
                return Err(CliError::Differs(format!(
                    "{} keeps its log from {first} on though its state is checkpointed at \
                     {checkpoint} and entry {gone} is needed by nobody that is there",
                    self.nodes[which].name
                )));
            }
            say!(
                "{}: state checkpointed at entry {checkpoint}, log dropped below {first}",
                self.nodes[which].name
            )?;
        }

        let Self { demo, pieces, nodes, expected } = self;
        let wanted = demo.restore_size.saturating_sub(demo.size);
        let bar = byte_bar("loading more", wanted);
        let (mut number, mut given) = (0_u64, 0_u64);
        let mut source = || {
            if given >= wanted {
                return Ok(None);
            }
            let mut value = Vec::with_capacity(BULK_BYTES);
            while value.len() < BULK_BYTES {
                value.extend_from_slice(&pieces.next_piece()?.value);
            }
            number += 1;
            given += value.len() as u64;
            Ok(Some(Piece { key: format!("bulk/{number:06}"), value }))
        };
        let loaded =
            load(&nodes[master], "majority", &mut source, &mut expected.majority, |loaded| {
                bar.set_position(loaded.bytes);
                Ok(())
            })?;
        bar.finish_and_clear();
        table.throughput("load of 64 KiB values, two nodes of three", loaded.bytes, loaded.time);

        let name = self.nodes[away].name;
        let last = self.nodes[master].info()?.number("last_vlsn").unwrap_or(0);
        let started = Instant::now();
        self.start_again(away)?;
        let bar = byte_bar("restoring", self.demo.restore_size);
        let (bytes, segments, checkpoint) = self.nodes[away].wait_for("restore", |info| {
            let bytes = info.number("restore_bytes_fetched")?.max(0) as u64;
            bar.set_length(bytes.max(self.demo.restore_size));
            bar.set_position(bytes);
            Some((bytes, info.number("restored_segments")?, info.number("restored_checkpoint")?))
        })?;
        let restoring = started.elapsed();
        bar.finish_and_clear();
        self.nodes[away].wait_applied(last)?;
        let readable = started.elapsed();
        say!(
            "{name}: {} fetched and verified, checkpoint of entry {checkpoint} and {segments} segments, in {restoring:.2?}",
            show_bytes(bytes)
        )?;
        say!("{name}: everything through entry {last} readable {readable:.2?} after its start")?;
        if bytes < self.demo.restore_size {
            return Err(CliError::Differs(format!(
                "{} were to be restored, {} were",
                show_bytes(self.demo.restore_size),
                show_bytes(bytes)
            )));
        }
        table.throughput("network restore, start of the process to installed", bytes, restoring);
        table.time("network restore, start of the process to readable", readable);

        let mut number = 0;
        let mut source = || {
            number += 1;
            let piece = Piece {
                key: format!("restored/{number:06}"),
                value: format!("acknowledged by all three, {number}").into_bytes(),
            };
            Ok((number <= LONELY_COMMITS).then_some(piece))
        };
        let live =
            load(&self.nodes[master], "all", &mut source, &mut self.expected.majority, |_| Ok(()))?;
        say!("{} commits acknowledged by all three: {name} streams again", live.commits)?;
        Ok(())
    }

    fn fail_over(&mut self, table: &mut Table) -> Result<(), CliError> {
        // What one of them was told for the scenes before is over.
        for which in [N1, N2, N3] {
            self.nodes[which].stop()?;
            self.start_again(which)?;
            self.master()?;
        }
        let rounds = self.demo.failover_rounds;
        let Self { nodes, expected, .. } = self;
        failover::play(nodes, rounds, &mut expected.majority, table, |nodes, which| {
            start_again(nodes, which).map(drop)
        })
    }

    fn verify(&mut self, table: &mut Table) -> Result<(), CliError> {
        let started = Instant::now();
        let mut last = 0;
        for node in &self.nodes {
            last = last.max(node.info()?.number("last_vlsn").unwrap_or(0));
        }
        for node in &self.nodes {
            node.wait_applied(last)?;
        }
        verify::check_contents(&self.nodes, &self.expected)?;
        // Replicas first: nobody is master after it, so nobody appends.
        let master = self.master()?;
        for which in (0..3).filter(|which| *which != master) {
            self.nodes[which].stop()?;
        }
        self.nodes[master].stop()?;
        verify::check_logs(&self.nodes)?;
        table.time("verification", started.elapsed());
        Ok(())
    }
}

/// Starts a node with the others that run as its peers.
fn start_again(nodes: &mut [NodeProcess], which: usize) -> Result<Duration, CliError> {
    let others = nodes.iter().enumerate().filter(|(other, n)| *other != which && n.is_running());
    let peers: Vec<String> = others.map(|(_, node)| node.peer_addr.clone()).collect();
    let mut arguments = Vec::new();
    for peer in &peers {
        arguments.extend(["--peer", peer]);
    }
    nodes[which].start(&arguments)
}
