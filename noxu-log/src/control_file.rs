//! ControlFile: what a node must remember beside its log: identity, term, vote, commit floor,
//! where the log begins, and what it was in the middle of.
//!
//! Four slots in two pairs. Version `v` goes to both slots of pair `v % 2`, the other pair keeps
//! version `v - 1`. Each slot is synced before the other one of its pair is written.
//!
//! # Invariants
//! - A crash never damages more than one slot: only one is being written at any time. So a pair
//!   with both slots bad is rot and not a torn write, and nobody can know what it held: it might
//!   have been the newest vote. The file is then unreadable, whatever the other pair says.
//! - When `update` returns, both slots of a pair hold the new version: one rotten slot never brings
//!   an older version back.
//! - `open_or_create` returns only when all four slots are whole.
//!
//! # Slot, 4,096 bytes, little endian
//! crc32c u32 over all that follows · magic 8 bytes · format version u16 · payload length u16 ·
//! sequence (the version) u64 · payload · zeros

use std::io;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use noxu_util::codec::{CodecError, Put, Reader, u32_at, u64_at};
use noxu_util::{Fingerprint, GroupId, Incarnation, Lsn, Name, Term, Vlsn, checksum};
use parking_lot::{Mutex, RwLock};

use crate::entry::ChainState;
use crate::env::{Env, EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::mutant::{self, Mutant};

/// What a node votes by: see the fields of [`ControlState`] of the same names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Ballot {
    pub epoch: u32,
    pub incarnation: Incarnation,
    pub term: Term,
    pub vote: Option<Name>,
    pub commit_floor: Vlsn,
    pub head_uncertain: bool,
}

/// What the control file holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControlState {
    /// The group this directory belongs to; `None` before it was founded or adopted.
    pub group: Option<GroupIdentity>,
    /// Epoch of the group, raised only by a forced quorum.
    pub epoch: u32,
    /// Name of the node, once it has one.
    pub node: Option<Name>,
    /// Random number of this directory.
    pub incarnation: Incarnation,
    /// The group configuration last known, opaque here; at most [`MAX_GROUP_CONFIG_BYTES`].
    pub group_config: Bytes,
    /// The highest term heard of.
    pub term: Term,
    /// Whom this node voted for in `term`.
    pub vote: Option<Name>,
    /// Everything through it is known to be durable on a majority: never truncated.
    pub commit_floor: Vlsn,
    /// The position before the first entry that the log keeps.
    pub anchor: Anchor,
    /// A truncation that was begun and not finished.
    pub truncate_intent: Option<TruncateIntent>,
    /// Whether entries may be missing at the end of the log.
    pub head_uncertain: bool,
    /// Whether a network restore was begun and not finished.
    pub restore_marker: bool,
    /// Whether the log was closed in order.
    pub clean_shutdown: bool,
}

/// What makes a group a group, the same on all its nodes for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupIdentity {
    /// Made once, by the founder.
    pub id: GroupId,
    /// Name of the group.
    pub name: Name,
    /// Length at which segments roll, in bytes.
    pub segment_bytes: u32,
}

/// The position before the first kept entry; all zero for a log that begins at VLSN 1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Anchor {
    /// The entry before the first kept one.
    pub vlsn: Vlsn,
    /// Where it was.
    pub lsn: Lsn,
    /// Its term.
    pub term: Term,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// Where the first kept entry begins, or would begin.
    pub next_lsn: Lsn,
    /// The group configuration in force there; at most [`MAX_GROUP_CONFIG_BYTES`].
    pub group_config: Bytes,
}

/// A truncation that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TruncateIntent {
    /// The last entry that is kept; the anchor if none is.
    pub kept: ChainState,
    /// Where it stands.
    pub kept_lsn: Lsn,
    /// Where the cut goes: behind the last entry kept, in its segment. Offset 0 if the segment goes
    /// as a whole, because none of its entries is kept.
    pub cut: Lsn,
    /// Name of the lost-entries file that takes what is cut; `None` to discard it. At most
    /// [`MAX_LOST_NAME_BYTES`].
    pub lost: Option<String>,
}

/// Largest group configuration, in bytes.
pub const MAX_GROUP_CONFIG_BYTES: usize = 1_700;
/// Longest name of a lost-entries file, in bytes.
pub const MAX_LOST_NAME_BYTES: usize = 128;

const FILE_NAME: &str = "control";
const TEMP_NAME: &str = "control.new";
const FORMAT_VERSION: u16 = 2;
const MAGIC: &[u8; 8] = b"NOXUCTRL";
const SLOT_BYTES: usize = 4096;
const SLOTS: usize = 4;
/// Offsets of a slot's fields.
const AT_MAGIC: usize = 4;
const AT_FORMAT: usize = 12;
const AT_LENGTH: usize = 14;
const AT_SEQUENCE: usize = 16;
const AT_PAYLOAD: usize = 24;

/// The control file of an open node directory. Usable from many threads.
#[derive(Debug)]
pub struct ControlFile {
    path: PathBuf,
    /// Taken before `state`, held while writing.
    writer: Mutex<Writer>,
    /// The newest durable state; never locked while writing.
    state: RwLock<ControlState>,
}

#[derive(Debug)]
struct Writer {
    file: Arc<dyn EnvFile>,
    /// Sequence in each slot; `None` if it is bad.
    slots: [Option<u64>; SLOTS],
    failed: Option<LogError>,
    /// The answer once the directory may be somebody else's.
    closed: Option<LogError>,
}

impl ControlFile {
    /// Opens the control file of `dir`, which must exist and be locked by the caller, and heals
    /// what a crash left. Creates it with a new incarnation if there is neither a control file nor
    /// a log; a log without control file is [`LogError::ControlUnreadable`].
    pub fn open_or_create(env: &dyn Env, dir: &Path) -> Result<Self> {
        let path = dir.join(FILE_NAME);
        if !env.exists(&path).map_err(|e| LogError::io("open", &path, e))? {
            if has_log(env, dir)? {
                return Err(LogError::control_unreadable(&path, "missing beside a log"));
            }
            create(env, dir).map_err(|e| LogError::io("create", &path, e))?;
        }
        let open = env.open(&path, OpenMode::ReadWrite);
        let file = open.map_err(|e| LogError::io("open", &path, e))?;
        let (state, slots) = read_slots(&*file, &path)?;
        let mut writer = Writer { file, slots, failed: None, closed: None };
        let repairs = writer.repairs_needed();
        if repairs > 0 {
            tracing::warn!(path = %path.display(), slots = ?writer.slots, "control file: healing");
        }
        for _ in 0..repairs {
            writer.write(&state, &path)?;
        }
        Ok(Self { path, writer: Mutex::new(writer), state: RwLock::new(state) })
    }

    /// Reads the state without opening for writing and without healing; for tools.
    pub fn read(env: &dyn Env, dir: &Path) -> Result<ControlState> {
        let path = dir.join(FILE_NAME);
        let open = env.open(&path, OpenMode::Read);
        let file = open.map_err(|e| LogError::io("open", &path, e))?;
        Ok(read_slots(&*file, &path)?.0)
    }

    /// The newest durable state.
    pub fn state(&self) -> ControlState {
        self.state.read().clone()
    }

    /// The newest durable ballot: what elections ask for at every message, without the
    /// configurations that [`ControlFile::state`] copies.
    pub fn ballot(&self) -> Ballot {
        let state = self.state.read();
        Ballot {
            epoch: state.epoch,
            incarnation: state.incarnation,
            term: state.term,
            vote: state.vote.clone(),
            commit_floor: state.commit_floor,
            head_uncertain: state.head_uncertain,
        }
    }

    /// Changes the state; durable on return. After a failure the state is as before, and every
    /// later update is [`LogError::Poisoned`]. Costs nothing if `change` changes nothing.
    ///
    /// # Panics
    /// If `change` lowers the term, or replaces a vote without raising it: a bug that would
    /// elect two masters.
    pub fn update(&self, change: impl FnOnce(&mut ControlState)) -> Result<()> {
        let mut writer = self.writer.lock();
        if let Some(failed) = &writer.failed {
            return Err(failed.poisoned());
        }
        if let Some(closed) = &writer.closed {
            return Err(closed.clone());
        }
        let old = self.state.read().clone();
        let mut new = old.clone();
        change(&mut new);
        if new == old {
            return Ok(());
        }
        assert!(new.term >= old.term, "term lowered from {} to {}", old.term, new.term);
        let may_vote = new.term > old.term || old.vote.is_none();
        assert!(
            may_vote || new.vote == old.vote,
            "vote in term {} changed from {:?} to {:?}",
            old.term,
            old.vote,
            new.vote
        );
        writer.write(&new, &self.path)?;
        *self.state.write() = new;
        Ok(())
    }

    /// Waits for whoever is writing, and has everybody after that answered with `closed`.
    pub(crate) fn close(&self, closed: LogError) {
        self.writer.lock().closed = Some(closed);
    }
}

impl Writer {
    /// Writes the next version and syncs each slot.
    fn write(&mut self, state: &ControlState, path: &Path) -> Result<()> {
        let sequence = self.newest() + 1;
        let slot = encode_slot(state, sequence)?; // an error here has written nothing
        let mut pair = pair_of(sequence);
        // While one slot is being written, the better one of the pair stays whole.
        pair.sort_by_key(|index| self.slots[*index]);
        for (at, index) in pair.into_iter().enumerate() {
            if at == 1 && mutant::is_on(Mutant::ControlWrittenToOneSlot) {
                break;
            }
            self.slots[index] = None;
            let offset = (index * SLOT_BYTES) as u64;
            let written = self.file.write_at(&[IoSlice::new(&slot)], offset);
            let unsynced = mutant::is_on(Mutant::ControlNotSynced)
                || (at == 0 && mutant::is_on(Mutant::ControlSlotsSyncedTogether));
            let synced =
                written.and_then(|()| if unsynced { Ok(()) } else { self.file.sync_data() });
            if let Err(error) = synced {
                let error = LogError::io("write", path, error);
                self.failed = Some(error.clone());
                return Err(error);
            }
            self.slots[index] = Some(sequence);
        }
        Ok(())
    }

    fn newest(&self) -> u64 {
        self.slots.iter().flatten().copied().max().unwrap_or(0)
    }

    /// How many times the state must be written until all slots are whole and up to date.
    fn repairs_needed(&self) -> usize {
        let newest = self.newest();
        let whole = |version| pair_of(version).iter().all(|i| self.slots[*i] == Some(version));
        match (whole(newest), whole(newest - 1)) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        }
    }
}

fn pair_of(sequence: u64) -> [usize; 2] {
    if sequence.is_multiple_of(2) { [0, 1] } else { [2, 3] }
}

fn has_log(env: &dyn Env, dir: &Path) -> Result<bool> {
    let log = dir.join("log");
    match env.list(&log) {
        Ok(names) => {
            Ok(names.iter().any(|name| Path::new(name).extension() == Some("nlog".as_ref())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(LogError::io("list", &log, error)),
    }
}

/// Crash-safe: the name appears, durably, only over a whole and synced file.
fn create(env: &dyn Env, dir: &Path) -> io::Result<()> {
    let incarnation = Incarnation::from_u64(env.entropy());
    let state = ControlState { incarnation, ..ControlState::default() };
    let slot_of = |sequence| encode_slot(&state, sequence).map_err(io::Error::other);
    let (older, newer) = (slot_of(1)?, slot_of(2)?);
    let temp = dir.join(TEMP_NAME);
    let file = env.open(&temp, OpenMode::CreateOrOpen)?;
    file.set_len(0)?;
    let slots = [&newer, &newer, &older, &older].map(|slot| IoSlice::new(slot));
    file.write_at(&slots, 0)?;
    file.sync_data()?;
    env.rename(&temp, &dir.join(FILE_NAME))?;
    env.sync_dir(dir)
}

fn read_slots(file: &dyn EnvFile, path: &Path) -> Result<(ControlState, [Option<u64>; SLOTS])> {
    let mut bytes = vec![0; SLOTS * SLOT_BYTES];
    let count = file.read_at(&mut bytes, 0).map_err(|e| LogError::io("read", path, e))?;
    let mut slots = [None; SLOTS];
    let mut newest: Option<(u64, &[u8])> = None;
    for (index, slot) in bytes[..count].chunks_exact(SLOT_BYTES).enumerate() {
        let Some((sequence, payload)) = check_slot(slot, index, path)? else { continue };
        slots[index] = Some(sequence);
        if newest.is_none_or(|(found, _)| found < sequence) {
            newest = Some((sequence, payload));
        }
    }
    for [first, second] in [pair_of(0), pair_of(1)] {
        if slots[first].is_none() && slots[second].is_none() {
            let reason = format!("slots {first} and {second} are both damaged");
            return Err(LogError::control_unreadable(path, reason));
        }
    }
    let (_, payload) = newest.ok_or_else(|| LogError::control_unreadable(path, "no slot"))?;
    let state = decode_payload(payload).map_err(|error| {
        LogError::control_unreadable(path, format!("a slot with a valid checksum: {error}"))
    })?;
    Ok((state, slots))
}

/// Sequence and payload of a slot; `None` if it is bad.
fn check_slot<'a>(slot: &'a [u8], index: usize, path: &Path) -> Result<Option<(u64, &'a [u8])>> {
    if checksum::crc(&slot[AT_MAGIC..]) != u32_at(slot, 0) || slot[AT_MAGIC..AT_FORMAT] != *MAGIC {
        return Ok(None);
    }
    let found = u16::from_le_bytes([slot[AT_FORMAT], slot[AT_FORMAT + 1]]);
    if found != FORMAT_VERSION {
        let path = path.to_owned();
        return Err(LogError::FormatVersion { path, found, expected: FORMAT_VERSION });
    }
    let len = usize::from(u16::from_le_bytes([slot[AT_LENGTH], slot[AT_LENGTH + 1]]));
    let sequence = u64_at(slot, AT_SEQUENCE);
    // A slot that belongs to the other pair was written to the wrong place.
    let belongs = (1..u64::MAX / 2).contains(&sequence) && pair_of(sequence).contains(&index);
    Ok(slot.get(AT_PAYLOAD..AT_PAYLOAD + len).filter(|_| belongs).map(|bytes| (sequence, bytes)))
}

fn encode_slot(state: &ControlState, sequence: u64) -> Result<Vec<u8>> {
    let payload = encode_payload(state)?;
    assert!(payload.len() <= SLOT_BYTES - AT_PAYLOAD, "{} bytes in one slot", payload.len());
    let mut slot = Vec::with_capacity(SLOT_BYTES);
    slot.put_u32(0);
    slot.put_bytes(MAGIC);
    slot.put_u16(FORMAT_VERSION);
    slot.put_u16(payload.len() as u16);
    slot.put_u64(sequence);
    slot.put_bytes(&payload);
    slot.resize(SLOT_BYTES, 0);
    let crc = checksum::crc(&slot[AT_MAGIC..]);
    slot[..AT_MAGIC].copy_from_slice(&crc.to_le_bytes());
    Ok(slot)
}

fn encode_payload(state: &ControlState) -> Result<Vec<u8>> {
    let check = |what, found: usize, limit: usize| match found {
        found if found <= limit => Ok(()),
        found => Err(LogError::TooLarge { what, found: found as u64, limit: limit as u64 }),
    };
    check("group configuration", state.group_config.len(), MAX_GROUP_CONFIG_BYTES)?;
    check("group configuration", state.anchor.group_config.len(), MAX_GROUP_CONFIG_BYTES)?;
    let lost = state.truncate_intent.as_ref().and_then(|intent| intent.lost.as_deref());
    check("name of a lost-entries file", lost.map_or(0, str::len), MAX_LOST_NAME_BYTES)?;

    let mut out = Vec::new();
    out.put_bool(state.group.is_some());
    if let Some(group) = &state.group {
        out.put_bytes(group.id.as_bytes());
        out.put_text(group.name.as_str());
        out.put_u32(group.segment_bytes);
    }
    out.put_u32(state.epoch);
    out.put_text(state.node.as_ref().map_or("", Name::as_str));
    out.put_u64(state.incarnation.as_u64());
    out.put_u32(state.term.number());
    out.put_text(state.vote.as_ref().map_or("", Name::as_str));
    out.put_vlsn(state.commit_floor);
    out.put_vlsn(state.anchor.vlsn);
    out.put_u64(state.anchor.lsn.as_u64());
    out.put_u32(state.anchor.term.number());
    out.put_u64(state.anchor.fingerprint.as_u64());
    out.put_u64(state.anchor.next_lsn.as_u64());
    out.put_bool(state.truncate_intent.is_some());
    if let Some(intent) = &state.truncate_intent {
        out.put_vlsn(intent.kept.vlsn);
        out.put_u32(intent.kept.term.number());
        out.put_u64(intent.kept.fingerprint.as_u64());
        out.put_u64(intent.kept_lsn.as_u64());
        out.put_u64(intent.cut.as_u64());
        out.put_bool(intent.lost.is_some());
        out.put_text(lost.unwrap_or_default());
    }
    out.put_bool(state.head_uncertain);
    out.put_bool(state.restore_marker);
    out.put_bool(state.clean_shutdown);
    out.put_short_bytes(&state.group_config);
    out.put_short_bytes(&state.anchor.group_config);
    Ok(out)
}

fn decode_payload(payload: &[u8]) -> Result<ControlState, CodecError> {
    let mut r = Reader::new(payload);
    let group = if r.bool("group present")? {
        Some(GroupIdentity {
            id: r.group_id("group")?,
            name: r.name("group name")?,
            segment_bytes: r.u32("segment length")?,
        })
    } else {
        None
    };
    let epoch = r.u32("epoch")?;
    let node = optional_name(&mut r, "node name")?;
    let incarnation = Incarnation::from_u64(r.u64("incarnation")?);
    let term = Term::new(r.u32("term")?);
    let vote = optional_name(&mut r, "vote")?;
    let commit_floor = r.vlsn("commit floor")?;
    let mut anchor = Anchor {
        vlsn: r.vlsn("anchor VLSN")?,
        lsn: Lsn::from_u64(r.u64("anchor LSN")?),
        term: Term::new(r.u32("anchor term")?),
        fingerprint: Fingerprint::from_u64(r.u64("anchor fingerprint")?),
        next_lsn: Lsn::from_u64(r.u64("LSN after the anchor")?),
        group_config: Bytes::new(),
    };
    let truncate_intent = if r.bool("truncation present")? {
        let kept = ChainState {
            vlsn: r.vlsn("truncation VLSN")?,
            term: Term::new(r.u32("truncation term")?),
            fingerprint: Fingerprint::from_u64(r.u64("truncation fingerprint")?),
        };
        let kept_lsn = Lsn::from_u64(r.u64("truncation LSN")?);
        let cut = Lsn::from_u64(r.u64("LSN of the cut")?);
        let saved = r.bool("lost entries saved")?;
        let name = r.text("lost-entries file", MAX_LOST_NAME_BYTES)?.to_owned();
        Some(TruncateIntent { kept, kept_lsn, cut, lost: saved.then_some(name) })
    } else {
        None
    };
    let head_uncertain = r.bool("head uncertain")?;
    let restore_marker = r.bool("restore marker")?;
    let clean_shutdown = r.bool("clean shutdown")?;
    let group_config =
        Bytes::copy_from_slice(r.short_bytes("group configuration", MAX_GROUP_CONFIG_BYTES)?);
    anchor.group_config =
        Bytes::copy_from_slice(r.short_bytes("anchor configuration", MAX_GROUP_CONFIG_BYTES)?);
    r.finish("the control state")?;
    Ok(ControlState {
        group,
        epoch,
        node,
        incarnation,
        group_config,
        term,
        vote,
        commit_floor,
        anchor,
        truncate_intent,
        head_uncertain,
        restore_marker,
        clean_shutdown,
    })
}

fn optional_name(r: &mut Reader<'_>, what: &'static str) -> Result<Option<Name>, CodecError> {
    match r.text(what, noxu_util::MAX_NAME_BYTES)? {
        "" => Ok(None),
        text => Ok(Some(text.parse()?)),
    }
}

#[cfg(test)]
mod tests;
