//! Frames: the memory of received frames, used again once the log has let go of them.
//!
//! The log's tail shares the bytes of a long frame instead of copying them. Memory that went back to
//! the allocator instead would be zeroed once more, and often come cold from the kernel.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::wire::message::MAX_MESSAGE_BYTES;

/// Most buffers kept: what the log gives back at once.
const MOST_FREE: usize = 16;

/// Frames at least so long keep their buffer, the others are copied out of it: a buffer takes
/// [`MAX_MESSAGE_BYTES`], whatever it holds.
const LONG_BYTES: usize = MAX_MESSAGE_BYTES / 2;

/// Buffers that nobody uses.
#[derive(Debug, Default, Clone)]
pub(crate) struct Frames {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Frames {
    /// The frame in `buffer` as shared bytes; `buffer` then serves for the next one.
    pub(crate) fn share(&self, buffer: &mut Vec<u8>) -> Bytes {
        if buffer.len() < LONG_BYTES {
            return Bytes::copy_from_slice(buffer);
        }
        let next = self.free.lock().pop().unwrap_or_default();
        let bytes = std::mem::replace(buffer, next);
        Bytes::from_owner(Frame { bytes, free: Arc::clone(&self.free) })
    }
}

/// A frame whose buffer goes back when nobody needs its bytes any more.
struct Frame {
    bytes: Vec<u8>,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let mut free = self.free.lock();
        if free.len() < MOST_FREE {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_frame_keeps_its_buffer_until_nobody_needs_it() {
        let frames = Frames::default();
        let mut buffer = vec![1; LONG_BYTES];
        let first = frames.share(&mut buffer);
        assert!(buffer.is_empty());
        let part = first.slice(1..2);
        drop(first);
        assert!(frames.free.lock().is_empty());
        assert_eq!(part[..], [1]);
        drop(part);
        assert_eq!(frames.free.lock().len(), 1);
        buffer = vec![2; LONG_BYTES];
        let second = frames.share(&mut buffer);
        assert_eq!((second[0], buffer.len()), (2, LONG_BYTES), "the first one's serves again");
    }

    #[test]
    fn a_short_frame_leaves_the_buffer_where_it_is() {
        let frames = Frames::default();
        let mut buffer = vec![1; LONG_BYTES - 1];
        let frame = frames.share(&mut buffer);
        buffer.fill(2);
        assert_eq!(frame, vec![1; LONG_BYTES - 1]);
    }

    #[test]
    fn the_buffers_kept_are_bounded() {
        let frames = Frames::default();
        let share = |_| frames.share(&mut vec![0; LONG_BYTES]);
        drop((0..2 * MOST_FREE).map(share).collect::<Vec<_>>());
        assert_eq!(frames.free.lock().len(), MOST_FREE);
    }
}
