//! Search: whom a node that looks for its group's master asks next, and how long it rests when
//! nobody could be followed.
//!
//! # States
//! Resting -[`Search::begin_round`]-> Round -[`Search::poll_candidate`] is `None`-> Resting
//!
//! # Not here: dialling and what a conversation comes to (driver/following.rs); whether to look for a
//! master at all (core/node.rs).

use std::collections::VecDeque;
use std::time::Duration;

/// First and longest rest between two rounds in which nobody could be followed.
const FIRST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_millis(500);

/// How an attempt with one peer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// The stream was open for some time, or a restore has everything.
    Followed,
    /// The master, but nothing came of it: nobody else need be asked for now.
    Failed,
    /// Not the one to follow.
    NotThis {
        /// Address of the one to ask instead, if it named one.
        instead: Option<String>,
    },
}

/// A search for the master.
#[derive(Debug)]
pub struct Search {
    rest: Duration,
    /// Who is to be asked in this round.
    left: VecDeque<String>,
    /// A master was named in this round, and asked.
    hinted: bool,
}

impl Default for Search {
    fn default() -> Self {
        Self { rest: FIRST_REST, left: VecDeque::new(), hinted: false }
    }
}

impl Search {
    /// Everybody at the addresses `known` is to be asked once, in this order, but not `own`.
    pub fn begin_round(&mut self, own: &str, known: impl IntoIterator<Item = String>) {
        self.left.clear();
        self.hinted = false;
        for address in known {
            if address != own && !self.left.contains(&address) {
                self.left.push_back(address);
            }
        }
    }

    /// Who is to be asked next; `None` at the end of the round.
    pub fn poll_candidate(&mut self) -> Option<String> {
        self.left.pop_front()
    }

    /// So ended what was tried with the peer at `address`.
    pub fn handle_attempt(&mut self, address: &str, attempt: Attempt) {
        match attempt {
            Attempt::Followed => {
                self.rest = FIRST_REST;
                self.left.clear();
            }
            Attempt::Failed => self.left.clear(),
            // Once a round: two nodes may name each other.
            Attempt::NotThis { instead: Some(master) } if !self.hinted && master != address => {
                self.hinted = true;
                self.left.push_front(master);
            }
            Attempt::NotThis { .. } => {}
        }
    }

    /// How long to rest before the next round, longer each time. `spread`, from 0 to 1, keeps nodes
    /// that lost the same master from dialling in step.
    pub fn end_round(&mut self, spread: f64) -> Duration {
        let rest = self.rest.mul_f64(0.5 + spread);
        self.rest = (self.rest * 2).min(LONGEST_REST);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(known: &[&str]) -> Search {
        let mut search = Search::default();
        search.begin_round("me:1", known.iter().map(|at| (*at).to_owned()));
        search
    }

    fn not_this(instead: Option<&str>) -> Attempt {
        Attempt::NotThis { instead: instead.map(str::to_owned) }
    }

    /// Who is asked, if everybody answers as `answer` says.
    fn asked(search: &mut Search, answer: impl Fn(&str) -> Attempt) -> Vec<String> {
        let mut asked = Vec::new();
        while let Some(address) = search.poll_candidate() {
            search.handle_attempt(&address, answer(&address));
            asked.push(address);
        }
        asked
    }

    #[test]
    fn everybody_else_is_asked_once() {
        let mut search = begun(&["a:1", "me:1", "b:1", "a:1", "c:1"]);
        assert_eq!(asked(&mut search, |_| not_this(None)), ["a:1", "b:1", "c:1"]);
    }

    #[test]
    fn a_master_that_is_named_is_asked_next_and_only_once_a_round() {
        let mut search = begun(&["a:1", "b:1"]);
        let names = |address: &str| match address {
            "x:1" => not_this(Some("y:1")),
            "b:1" => not_this(Some("x:1")),
            other => not_this(Some(other)), // itself
        };
        assert_eq!(asked(&mut search, names), ["a:1", "b:1", "x:1"]);
        let mut search = begun(&["b:1", "c:1"]);
        assert_eq!(asked(&mut search, names), ["b:1", "x:1", "c:1"]);
    }

    #[test]
    fn nobody_else_is_asked_once_the_master_is_found() {
        for end in [Attempt::Followed, Attempt::Failed] {
            let answer =
                |address: &str| if address == "b:1" { end.clone() } else { not_this(None) };
            assert_eq!(asked(&mut begun(&["a:1", "b:1", "c:1"]), answer), ["a:1", "b:1"]);
        }
    }

    #[test]
    fn rests_grow_until_somebody_was_followed() {
        let mut search = Search::default();
        let rests: Vec<_> = (0..8).map(|_| search.end_round(0.5).as_millis()).collect();
        assert_eq!(rests, [10, 20, 40, 80, 160, 320, 500, 500]);
        search.handle_attempt("a:1", Attempt::Failed);
        assert_eq!(search.end_round(0.0).as_millis(), 250, "a master that fails is no rest");
        search.handle_attempt("a:1", Attempt::Followed);
        assert_eq!(search.end_round(1.0).as_millis(), 15);
    }
}
