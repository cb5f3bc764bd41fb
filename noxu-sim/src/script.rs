//! Script: a scenario, written down: what is done to a group, step by step, and what is to come of
//! it.
//!
//! # Language
//! A line is a command; what follows `#` is a comment. Nodes are letters, `A` is the first; `all` is
//! all of them. Times are `300ms` or `2s`.
//!
//! ```text
//! seed N                          how the small delays are drawn; 1 unless it is said
//! nodes 3                         how many voters there are; 3 unless it is said
//! secondaries 1                   nodes without a vote, behind those; none unless it is said
//! quorum rep=2 elect=2            majorities unless it is said
//! priority A 9                    1 unless it is said
//! failure-timeout 300ms           500ms unless it is said
//!
//! start A..                       the process starts; nothing runs at the beginning
//! stop A..                        closes in order
//! kill A..                        the process dies
//! crash A..                       the machine loses its power: what is not synced may be gone
//! crash A.. losing all            the same, and it is
//! wipe A..                        it gets an empty disk, and is down
//! pause A.. / resume A..          the process hangs, and goes on
//! partition A | B C               nothing passes between the sides
//! cut A -> B C                    nothing passes that way
//! heal                            everything passes
//! reset A B                       the connections between both are reset
//! hold KIND A.. -> B.. as h       messages of a kind that go these ways wait from now on. KIND is
//!                                 pre-votes, votes (both: the requests), pre-grants, grants, standings,
//!                                 entries, acks or heads (where the master's log ends); on a
//!                                 connection whatever comes behind them waits too
//! enough h                        nothing more is held; what waits goes on waiting
//! release h / drop h              what waits comes now, or never; nothing more is held
//! replay h                        what waits comes on the connection that there is by now, as if
//!                                 somebody between both had mixed them up
//! disk A full / disk A ok         there is no room, and again
//! disk A broken                   the next sync fails: the process stops, and is back soon
//! corrupt A entry x               the (first) entry of the write named x rots
//! corrupt A last                  the last entry of its log rots
//! corrupt A mark                  both slots of the tail mark rot
//! corrupt A control               one slot of the control file rots
//! corrupt A header                the header of a segment rots
//! write [n] [POLICY] [at A] [as x]
//!                                 n transactions. Named ones are written and not waited for;
//!                                 others have to be reported done. POLICY is local, majority
//!                                 (unless it is said), written, nosync or all
//! call the master A               from here on A is the master of now, and what was A has its letter
//! run 500ms                       time passes
//! expect WHAT [within 3s | for 2s]
//! ```
//!
//! `WHAT` is one of `master B`, `a master`, `no master`, `role A replica`, `down A`, `equal`,
//! `elections N`, `rollbacks N`, `held h` (something waits), `log A has x`, `log A lacks x`, and of a named write: `reported x`
//! (its client was told it is done), `unknown x` (it was written and its client knows no more),
//! `refused x` (nothing was written), `durable x` (it is on a quorum, whatever was told), `lost x` (no
//! node that runs has it).
//!
//! # Not here: doing it (world/scripted.rs), reading files (main.rs, the tests).

use std::time::Duration;

use noxu_rep::{Durability, Role};

use crate::disk::Rot;
use crate::event::Host;
use crate::hold::Kind;
use crate::plan::Plan;

/// A scenario.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// The world it happens in.
    pub plan: Plan,
    /// What is done, in order.
    pub lines: Vec<Line>,
}

/// One line of a scenario.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// As it is written.
    pub text: String,
    /// What it says.
    pub(crate) command: Command,
}

/// Why a text is no scenario, or did not go as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Number of the line.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

/// What a line does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    Start(Vec<Host>),
    Stop(Vec<Host>),
    Kill(Vec<Host>),
    Crash {
        hosts: Vec<Host>,
        /// Nothing is left that was not synced.
        losing_all: bool,
    },
    Wipe(Vec<Host>),
    Pause(Vec<Host>),
    Resume(Vec<Host>),
    /// Nothing passes these ways.
    Cut(Vec<(Host, Host)>),
    Heal,
    Reset(Host, Host),
    Hold {
        kind: Kind,
        ways: Vec<(Host, Host)>,
        name: String,
    },
    /// No more is held; what is goes on waiting.
    Enough(String),
    /// What is held comes after all, or is gone.
    Release {
        name: String,
        comes: bool,
    },
    Replay(String),
    Disk {
        host: Host,
        what: DiskState,
    },
    CorruptEntry {
        host: Host,
        write: String,
    },
    /// The last entry of its log.
    CorruptLast(Host),
    CorruptMark(Host),
    Corrupt(Host, Rot),
    Write(Writing),
    /// The master has this letter from now on.
    Call(Host),
    Run(Duration),
    Expect(Expectation, Patience),
}

/// What becomes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskState {
    Full,
    Ok,
    /// The next sync fails.
    Broken,
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Writing {
    pub(crate) count: usize,
    pub(crate) durability: Durability,
    pub(crate) at: Option<Host>,
    pub(crate) name: Option<String>,
}

/// How long something may take, or has to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    Within(Duration),
    For(Duration),
}

/// What is to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expectation {
    Master(Host),
    AMaster,
    NoMaster,
    Role(Host, Role),
    Down(Host),
    Equal,
    Elections(usize),
    Rollbacks(usize),
    Held(String),
    Reported(String),
    Unknown(String),
    Refused(String),
    Durable(String),
    Lost(String),
    Has(Host, String),
    Lacks(Host, String),
}

/// The words of one line, from the left.
struct Words<'a> {
    words: std::iter::Peekable<std::str::SplitWhitespace<'a>>,
    nodes: usize,
}

type Parsed<T> = Result<T, String>;

impl Script {
    /// Reads a scenario.
    ///
    /// # Errors
    /// The first line that says nothing.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let mut setup = Setup::default();
        let mut lines: Vec<Line> = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let number = at + 1;
            let line = line.split_once('#').map_or(line, |(line, _)| line).trim();
            let failed = |why| Failure { line: number, why };
            let nodes = setup.nodes + setup.secondaries;
            let mut words = Words { words: line.split_whitespace().peekable(), nodes };
            let Some(verb) = words.words.next() else { continue };
            if setup.take(verb, &mut words).map_err(failed)? {
                if !lines.is_empty() {
                    return Err(failed(format!("{verb} comes after the beginning")));
                }
            } else {
                let command = command(verb, &mut words).map_err(failed)?;
                lines.push(Line { number, text: line.to_owned(), command });
            }
            if let Some(more) = words.words.next() {
                return Err(failed(format!("{more} is one word too many")));
            }
        }
        let plan = setup.plan().map_err(|why| Failure { line: 1, why })?;
        Ok(Self { plan, lines })
    }
}

/// The group that a scenario is about.
struct Setup {
    seed: u64,
    nodes: usize,
    secondaries: usize,
    quorums: Option<(usize, usize)>,
    priorities: Vec<(Host, u8)>,
    failure: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        let failure = Duration::from_millis(500);
        Self { seed: 1, nodes: 3, secondaries: 0, quorums: None, priorities: Vec::new(), failure }
    }
}

impl Setup {
    /// Takes a line, if it is about the group.
    fn take(&mut self, verb: &str, words: &mut Words<'_>) -> Parsed<bool> {
        match verb {
            "seed" => self.seed = words.number()?,
            "nodes" => self.nodes = words.number()? as usize,
            "secondaries" => self.secondaries = words.number()? as usize,
            "quorum" => {
                let mut part = |key: &str| -> Parsed<usize> {
                    let word = words.word()?;
                    let number = word.strip_prefix(key).and_then(|rest| rest.parse().ok());
                    number.ok_or_else(|| format!("{key}N expected, not {word}"))
                };
                self.quorums = Some((part("rep=")?, part("elect=")?));
            }
            "priority" => self.priorities.push((words.host()?, words.number()? as u8)),
            "failure-timeout" => self.failure = words.time()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn plan(&self) -> Parsed<Plan> {
        if !(1..=5).contains(&self.nodes) {
            return Err(format!("{} nodes", self.nodes));
        }
        if self.secondaries > 2 {
            return Err(format!("{} secondaries", self.secondaries));
        }
        let plan = Plan::plain(self.seed, self.nodes, self.failure);
        let mut plan = plan.with_secondaries(self.secondaries);
        if let Some((q_rep, q_elect)) = self.quorums {
            (plan.q_rep, plan.q_elect) = (q_rep, q_elect);
        }
        for (host, priority) in &self.priorities {
            let of = plan.priorities.get_mut(host.0);
            *of.ok_or_else(|| format!("{host} has no vote, and so no priority"))? = *priority;
        }
        Ok(plan)
    }
}

fn command(verb: &str, words: &mut Words<'_>) -> Parsed<Command> {
    Ok(match verb {
        "start" => Command::Start(words.hosts()?),
        "stop" => Command::Stop(words.hosts()?),
        "kill" => Command::Kill(words.hosts()?),
        "crash" => {
            let hosts = words.hosts()?;
            let losing_all = words.words.next_if_eq(&"losing").is_some();
            if losing_all {
                words.literally("all")?;
            }
            Command::Crash { hosts, losing_all }
        }
        "wipe" => Command::Wipe(words.hosts()?),
        "pause" => Command::Pause(words.hosts()?),
        "resume" => Command::Resume(words.hosts()?),
        "partition" => {
            let mut sides = vec![words.hosts()?];
            while words.words.next_if_eq(&"|").is_some() {
                sides.push(words.hosts()?);
            }
            let mut ways = Vec::new();
            for (number, side) in sides.iter().enumerate() {
                let others = sides.iter().enumerate().filter(|(other, _)| *other != number);
                for to in others.flat_map(|(_, other)| other) {
                    ways.extend(side.iter().map(|from| (*from, *to)));
                }
            }
            Command::Cut(ways)
        }
        "cut" => {
            let from = words.host()?;
            words.literally("->")?;
            Command::Cut(words.hosts()?.into_iter().map(|to| (from, to)).collect())
        }
        "heal" => Command::Heal,
        "reset" => Command::Reset(words.host()?, words.host()?),
        "hold" => {
            let word = words.word()?;
            let kind = Kind::named(word).ok_or_else(|| format!("no messages are {word}"))?;
            let from = words.hosts()?;
            words.literally("->")?;
            let to = words.hosts()?;
            let ways = from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))).collect();
            words.literally("as")?;
            Command::Hold { kind, ways, name: words.name()? }
        }
        "enough" => Command::Enough(words.name()?),
        "release" => Command::Release { name: words.name()?, comes: true },
        "drop" => Command::Release { name: words.name()?, comes: false },
        "replay" => Command::Replay(words.name()?),
        "disk" => Command::Disk {
            host: words.host()?,
            what: match words.word()? {
                "full" => DiskState::Full,
                "ok" => DiskState::Ok,
                "broken" => DiskState::Broken,
                other => return Err(format!("full, ok or broken expected, not {other}")),
            },
        },
        "corrupt" => {
            let host = words.host()?;
            match words.word()? {
                "entry" => Command::CorruptEntry { host, write: words.name()? },
                "last" => Command::CorruptLast(host),
                "mark" => Command::CorruptMark(host),
                "control" => Command::Corrupt(host, Rot::ControlSlot),
                "header" => Command::Corrupt(host, Rot::SegmentHeader),
                other => return Err(format!("there is no {other} to rot")),
            }
        }
        "write" => Command::Write(words.writing()?),
        "call" => {
            words.literally("the")?;
            words.literally("master")?;
            Command::Call(words.host()?)
        }
        "run" => Command::Run(words.time()?),
        "expect" => {
            let what = expectation(words)?;
            let patience = match words.words.next() {
                None => Patience::Within(Duration::ZERO),
                Some("within") => Patience::Within(words.time()?),
                Some("for") => Patience::For(words.time()?),
                Some(other) => return Err(format!("within or for expected, not {other}")),
            };
            Command::Expect(what, patience)
        }
        other => return Err(format!("there is no verb {other}")),
    })
}

fn expectation(words: &mut Words<'_>) -> Parsed<Expectation> {
    Ok(match words.word()? {
        "master" => Expectation::Master(words.host()?),
        "a" => {
            words.literally("master")?;
            Expectation::AMaster
        }
        "no" => {
            words.literally("master")?;
            Expectation::NoMaster
        }
        "role" => Expectation::Role(
            words.host()?,
            match words.word()? {
                "master" => Role::Master,
                "replica" => Role::Replica,
                "unknown" => Role::Unknown,
                "restoring" => Role::Restoring,
                other => return Err(format!("{other} is no role")),
            },
        ),
        "down" => Expectation::Down(words.host()?),
        "equal" => Expectation::Equal,
        "elections" => Expectation::Elections(words.number()? as usize),
        "rollbacks" => Expectation::Rollbacks(words.number()? as usize),
        "held" => Expectation::Held(words.name()?),
        "reported" => Expectation::Reported(words.name()?),
        "unknown" => Expectation::Unknown(words.name()?),
        "refused" => Expectation::Refused(words.name()?),
        "durable" => Expectation::Durable(words.name()?),
        "lost" => Expectation::Lost(words.name()?),
        "log" => {
            let host = words.host()?;
            match words.word()? {
                "has" => Expectation::Has(host, words.name()?),
                "lacks" => Expectation::Lacks(host, words.name()?),
                other => return Err(format!("has or lacks expected, not {other}")),
            }
        }
        other => return Err(format!("nothing is known of {other}")),
    })
}

impl<'a> Words<'a> {
    fn word(&mut self) -> Parsed<&'a str> {
        self.words.next().ok_or_else(|| "the line is too short".to_owned())
    }

    fn literally(&mut self, expected: &str) -> Parsed<()> {
        let word = self.word()?;
        let met = word == expected;
        met.then_some(()).ok_or_else(|| format!("{expected} expected, not {word}"))
    }

    fn name(&mut self) -> Parsed<String> {
        self.word().map(str::to_owned)
    }

    fn number(&mut self) -> Parsed<u64> {
        let word = self.word()?;
        word.parse().map_err(|_| format!("a number expected, not {word}"))
    }

    fn time(&mut self) -> Parsed<Duration> {
        let word = self.word()?;
        let parsed = match (word.strip_suffix("ms"), word.strip_suffix('s')) {
            (Some(ms), _) => ms.parse().ok().map(Duration::from_millis),
            (None, Some(s)) => s.parse().ok().map(Duration::from_secs),
            (None, None) => None,
        };
        parsed.ok_or_else(|| format!("a time expected, not {word}"))
    }

    fn host(&mut self) -> Parsed<Host> {
        let word = self.word()?;
        as_host(word, self.nodes).ok_or_else(|| format!("a node expected, not {word}"))
    }

    /// All nodes that follow, at least one.
    fn hosts(&mut self) -> Parsed<Vec<Host>> {
        let nodes = self.nodes;
        if self.words.next_if_eq(&"all").is_some() {
            return Ok((0..nodes).map(Host).collect());
        }
        let mut hosts = vec![self.host()?];
        while let Some(word) = self.words.next_if(|word| as_host(word, nodes).is_some()) {
            hosts.extend(as_host(word, nodes));
        }
        Ok(hosts)
    }

    fn writing(&mut self) -> Parsed<Writing> {
        let durability = Durability::MAJORITY;
        let mut writing = Writing { count: 1, durability, at: None, name: None };
        while let Some(word) = self.words.next() {
            match word {
                "local" => writing.durability = Durability::LOCAL,
                "majority" => writing.durability = Durability::MAJORITY,
                "written" => writing.durability = Durability::WRITE_MAJORITY,
                "nosync" => writing.durability = Durability::NO_SYNC_MAJORITY,
                "all" => writing.durability = Durability::ALL,
                "at" => writing.at = Some(self.host()?),
                "as" => writing.name = Some(self.name()?),
                count => {
                    writing.count = count.parse().map_err(|_| format!("{count} says nothing"))?;
                }
            }
        }
        Ok(writing)
    }
}

impl Command {
    /// The same about other nodes.
    pub(crate) fn of(mut self, node: &dyn Fn(Host) -> Host) -> Self {
        let one = |host: &mut Host| *host = node(*host);
        match &mut self {
            Self::Start(hosts)
            | Self::Stop(hosts)
            | Self::Kill(hosts)
            | Self::Crash { hosts, .. }
            | Self::Wipe(hosts)
            | Self::Pause(hosts)
            | Self::Resume(hosts) => hosts.iter_mut().for_each(one),
            Self::Cut(ways) | Self::Hold { ways, .. } => ways.iter_mut().for_each(|(from, to)| {
                one(from);
                one(to);
            }),
            Self::Reset(a, b) => [a, b].into_iter().for_each(one),
            Self::Disk { host, .. }
            | Self::CorruptEntry { host, .. }
            | Self::CorruptLast(host)
            | Self::CorruptMark(host)
            | Self::Corrupt(host, _) => {
                one(host);
            }
            Self::Write(writing) => writing.at.iter_mut().for_each(one),
            Self::Expect(what, _) => match what {
                Expectation::Master(host)
                | Expectation::Role(host, _)
                | Expectation::Down(host)
                | Expectation::Has(host, _)
                | Expectation::Lacks(host, _) => one(host),
                Expectation::AMaster
                | Expectation::NoMaster
                | Expectation::Equal
                | Expectation::Elections(_)
                | Expectation::Rollbacks(_)
                | Expectation::Held(_)
                | Expectation::Reported(_)
                | Expectation::Unknown(_)
                | Expectation::Refused(_)
                | Expectation::Durable(_)
                | Expectation::Lost(_) => {}
            },
            // Of a call the letter itself is meant.
            Self::Call(_)
            | Self::Heal
            | Self::Run(_)
            | Self::Enough(_)
            | Self::Release { .. }
            | Self::Replay(_) => {}
        }
        self
    }
}

/// The node of a letter.
fn as_host(word: &str, nodes: usize) -> Option<Host> {
    let mut letters = word.chars();
    let (letter, rest) = (letters.next()?, letters.next());
    let number = (letter as usize).checked_sub('A' as usize)?;
    (rest.is_none() && number < nodes).then_some(Host(number))
}

/// The letter of a number.
pub(crate) fn letter(host: Host) -> char {
    char::from(b'A' + host.0 as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_read_line_by_line_without_its_comments() {
        let text = "# shows nothing\nnodes 4\nquorum rep=2 elect=3\npriority D 9\n\n\
                    start all # of them\npartition A | B C\ncut A -> D\n\
                    write 3 local at B as x\nexpect no master for 2s\nexpect log C has x within 30ms";
        let script = Script::parse(text).unwrap();
        assert_eq!((script.plan.voters, script.plan.q_rep, script.plan.q_elect), (4, 2, 3));
        assert_eq!(script.plan.priorities, [1, 1, 1, 9]);
        let [a, b, c, d] = [0, 1, 2, 3].map(Host);
        let commands: Vec<_> = script.lines.iter().map(|line| line.command.clone()).collect();
        let writing = Writing {
            count: 3,
            durability: Durability::LOCAL,
            at: Some(b),
            name: Some("x".to_owned()),
        };
        let expected = [
            Command::Start(vec![a, b, c, d]),
            Command::Cut(vec![(a, b), (a, c), (b, a), (c, a)]),
            Command::Cut(vec![(a, d)]),
            Command::Write(writing),
            Command::Expect(Expectation::NoMaster, Patience::For(Duration::from_secs(2))),
            Command::Expect(
                Expectation::Has(c, "x".to_owned()),
                Patience::Within(Duration::from_millis(30)),
            ),
        ];
        assert_eq!(commands, expected);
        assert_eq!((script.lines[3].number, script.lines[0].text.as_str()), (9, "start all"));
    }

    #[test]
    fn held_messages_have_a_kind_a_way_and_a_name() {
        let text = "hold votes A -> B C as h\nrelease h\ncrash A B losing all\nexpect held h";
        let script = Script::parse(text).unwrap();
        let [a, b, c] = [0, 1, 2].map(Host);
        let commands: Vec<_> = script.lines.iter().map(|line| line.command.clone()).collect();
        let name = "h".to_owned();
        let expected = [
            Command::Hold { kind: Kind::Votes, ways: vec![(a, b), (a, c)], name: name.clone() },
            Command::Release { name: name.clone(), comes: true },
            Command::Crash { hosts: vec![a, b], losing_all: true },
            Command::Expect(Expectation::Held(name), Patience::Within(Duration::ZERO)),
        ];
        assert_eq!(commands, expected);
    }

    #[test]
    fn a_line_that_says_nothing_is_named() {
        for (text, line, why) in [
            ("start A\nfly B", 2, "there is no verb fly"),
            ("start D", 1, "a node expected, not D"),
            ("start A\nseed 3", 2, "seed comes after the beginning"),
            ("run 5", 1, "a time expected, not 5"),
            ("heal all", 1, "all is one word too many"),
            ("expect role A king", 1, "king is no role"),
            ("hold letters A -> B as h", 1, "no messages are letters"),
            ("crash A losing some", 1, "all expected, not some"),
            ("disk A wet", 1, "full, ok or broken expected, not wet"),
        ] {
            assert_eq!(Script::parse(text), Err(Failure { line, why: why.to_owned() }), "{text}");
        }
    }
}
