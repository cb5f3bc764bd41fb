//! Sources: who gives what a session fetches, the master first among them; and for how long each has been
//! silent.

use std::sync::Arc;
use std::time::Duration;

use noxu_util::Name;

use crate::core::block_plan::SourceId;
use crate::net::channel::Channel;

/// The master, among the sources.
pub(super) const MASTER: SourceId = 0;

/// How long a source that owes blocks may be silent before others are asked for them too; twice as long each
/// time that it answers after all.
pub(in crate::restore) const PATIENCE: Duration = Duration::from_secs(2);

/// The same for the state, which takes its time to be opened.
pub(in crate::restore) const STATE_PATIENCE: Duration = Duration::from_secs(10);

/// Most that one look adds to a silence: while nobody looks, because the disk is waited for, what a source says
/// is not heard, and it may wait to say more.
const LONGEST_LOOK: Duration = Duration::from_millis(100);

/// One who gives.
pub(super) struct Source {
    pub(super) name: Name,
    pub(super) channel: Arc<dyn Channel>,
    /// It has said what it has.
    pub(super) is_attached: bool,
    /// It gives no state that is of any use: it does not have the method, or what it has is older than
    /// the front of the master's log, or of another history.
    pub(super) is_behind: bool,
    /// How long it has been silent since it last answered something, or was asked after it had answered
    /// everything, and when that was last counted.
    silence: Duration,
    looked: Duration,
    patience: Duration,
}

impl Source {
    pub(super) fn new(name: Name, channel: Arc<dyn Channel>, now: Duration) -> Self {
        let (is_attached, is_behind) = (false, false);
        let (silence, looked, patience) = (Duration::ZERO, now, PATIENCE);
        Self { name, channel, is_attached, is_behind, silence, looked, patience }
    }

    /// How long it has been silent.
    pub(super) const fn silence(&self) -> Duration {
        self.silence
    }

    /// Whether that is longer than it is waited for. It is waited for longer the next time.
    pub(super) fn is_patience_over(&mut self) -> bool {
        let is_over = self.silence() >= self.patience;
        if is_over {
            self.patience *= 2;
        }
        is_over
    }
}

/// All of them, by their numbers; `None` for one that is of no use any more.
pub(super) struct Sources(Vec<Option<Source>>);

impl Sources {
    /// Of a session with this master.
    pub(super) fn of(mut master: Source) -> Self {
        master.is_attached = true;
        Self(vec![Some(master)])
    }

    pub(super) fn add(&mut self, source: Source) {
        self.0.push(Some(source));
    }

    pub(super) fn get(&self, id: SourceId) -> Option<&Source> {
        self.0.get(id)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: SourceId) -> Option<&mut Source> {
        self.0.get_mut(id)?.as_mut()
    }

    /// It is of no use any more.
    pub(super) fn remove(&mut self, id: SourceId) -> Option<Source> {
        self.0.get_mut(id)?.take()
    }

    /// The numbers that there are, of sources that are gone too.
    pub(super) fn ids(&self) -> std::ops::Range<SourceId> {
        0..self.0.len()
    }

    /// Those that are there.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SourceId, &Source)> {
        self.0.iter().enumerate().filter_map(|(id, source)| Some((id, source.as_ref()?)))
    }

    pub(super) fn channel(&self, id: SourceId) -> Option<Arc<dyn Channel>> {
        Some(Arc::clone(&self.get(id)?.channel))
    }

    /// It was asked something, or answered: from now on it has to answer what else it was asked.
    pub(super) fn touch(&mut self, id: SourceId, now: Duration) {
        if let Some(source) = self.get_mut(id) {
            (source.silence, source.looked) = (Duration::ZERO, now);
        }
    }

    /// It was looked at, and had nothing to say.
    pub(super) fn note_quiet(&mut self, id: SourceId, now: Duration) {
        if let Some(source) = self.get_mut(id) {
            source.silence += now.saturating_sub(source.looked).min(LONGEST_LOOK);
            source.looked = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::channel::LocalChannelPair;

    #[test]
    fn only_who_was_looked_at_and_said_nothing_was_silent_and_patience_doubles() {
        let channel = Arc::new(LocalChannelPair::new().channel_a);
        let source = |name: &str| {
            Source::new(name.parse().unwrap(), Arc::<_>::clone(&channel) as _, Duration::ZERO)
        };
        let mut sources = Sources::of(source("n1"));
        sources.add(source("n2"));
        let mut now = Duration::ZERO;
        let mut looks_until_over = || {
            let looked = (1..1000).find(|_| {
                now += LONGEST_LOOK;
                sources.note_quiet(1, now);
                sources.get_mut(1).unwrap().is_patience_over()
            });
            looked.unwrap()
        };
        let looks = (PATIENCE.as_millis() / LONGEST_LOOK.as_millis()) as u32;
        assert_eq!(
            (looks_until_over(), looks_until_over(), looks_until_over()),
            (looks, looks, 2 * looks)
        );
        let later = now + PATIENCE * 9;
        sources.touch(1, now);
        sources.note_quiet(1, later);
        assert_eq!(sources.get(1).unwrap().silence(), LONGEST_LOOK, "nobody looked before");
    }
}
