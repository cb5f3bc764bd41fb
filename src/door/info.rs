//! Info: what a node says of itself in `INFO`, which `noxu status` shows.

use noxu_kv::{Store, StoreStatus};
use noxu_rep::status::{Retention, ScrubReport, ScrubSummary, SealedSegment, Status};
use noxu_rep::{DamageReport, Damaged, OpenDamage, Role};
use noxu_util::{Latencies, Vlsn};

use super::backend::{InfoLine as Line, InfoSection};

/// The sections of a store and its node.
pub(super) fn sections(store: &Store) -> Vec<InfoSection> {
    let node = store.node();
    let status = node.status();
    vec![
        ("Replication", replication_lines(&status, node.restore_pending().unwrap_or(true))),
        ("Log", log_lines(&status, &node.log().sealed_segments())),
        ("Store", store_lines(&store.status())),
    ]
}

fn line(key: &str, value: String) -> Line {
    (key.to_owned(), value)
}

fn vlsn(vlsn: Vlsn) -> String {
    vlsn.sequence().to_string()
}

fn replication_lines(status: &Status, restore_pending: bool) -> Vec<Line> {
    let mut lines = vec![
        line("role", if status.role == Role::Master { "master" } else { "slave" }.to_owned()),
        line("noxu_role", status.role.to_string()),
        line("reason", status.reason.clone()),
        line("node", status.name.to_string()),
        line("incarnation", status.incarnation.to_string()),
        line("term", status.term.to_string()),
        line("master", status.master.clone().unwrap_or_default()),
        line("dtvlsn", vlsn(status.dtvlsn)),
        line("visible_vlsn", vlsn(status.visible)),
        line("applied_vlsn", vlsn(status.applied)),
        line("commit_floor", vlsn(status.commit_floor)),
    ];
    if let Some(group) = &status.group {
        lines.push(line("group", group.name.to_string()));
        lines.push(line("group_id", group.id.to_string()));
        let members: Vec<_> = status.members.iter().map(ToString::to_string).collect();
        lines.push(line("members", members.join(",")));
        lines.push(line("voter", if status.is_voter { "yes" } else { "no" }.to_owned()));
    }
    lines.push(line("connected_slaves", status.replicas.len().to_string()));
    for (index, replica) in status.replicas.iter().enumerate() {
        lines.push(line(
            &format!("replica{index}"),
            format!(
                "name={},address={},sent={},received={},durable={},applied={},lag_entries={},lag_ms={}",
                replica.name,
                replica.address,
                vlsn(replica.sent),
                vlsn(replica.acked.received),
                vlsn(replica.acked.durable),
                vlsn(replica.acked.applied),
                replica.lag.entries,
                replica.lag.time.as_millis(),
            ),
        ));
    }
    for (name, recovery) in &status.recoveries {
        lines.push(line(&format!("recovery_{name}"), recovery.to_string()));
    }
    if let Some(syncup) = &status.last_syncup {
        lines.push(line("syncup_matchpoint", vlsn(syncup.matchpoint)));
        lines.push(line("syncup_start", vlsn(syncup.start)));
        lines.push(line("syncup_round_trips", syncup.round_trips.to_string()));
    }
    if let Some(rollback) = &status.last_rollback {
        lines.push(line("rollback_matchpoint", vlsn(rollback.matchpoint)));
        lines.push(line("rollback_entries", rollback.entries.to_string()));
        lines.push(line("rollback_round_trips", rollback.round_trips.to_string()));
        lines.push(line("rollback_lost_file", rollback.lost_file.display().to_string()));
    }
    lines.push(line("restore_pending", if restore_pending { "yes" } else { "no" }.to_owned()));
    if let Some(restore) = &status.restore {
        lines.push(line("restore_phase", format!("{:?}", restore.phase)));
        if let Some(method) = &restore.method {
            lines.push(line("restore_method", method.to_string()));
        }
        lines.push(line(
            "restore_blocks",
            format!("{} of {}", restore.blocks_done, restore.blocks_total),
        ));
        lines.push(line("restore_blocks_reused", restore.blocks_reused.to_string()));
        lines.push(line("restore_bytes_fetched", restore.bytes_fetched.to_string()));
        lines.push(line("restore_bytes_per_second", restore.bytes_per_second().to_string()));
        if let Some(left) = restore.time_left() {
            lines.push(line("restore_seconds_left", left.as_secs().to_string()));
        }
        lines.push(line("restore_checkpoint_bytes", restore.checkpoint_bytes.to_string()));
        lines.push(line("restore_checkpoint_reused", restore.checkpoint_reused.to_string()));
        lines.push(line("restore_live_entries", restore.live_entries.to_string()));
        for source in &restore.sources {
            let given = format!("{} blocks, {} bytes", source.blocks, source.bytes);
            lines.push(line(&format!("restore_from_{}", source.name), given));
        }
    }
    let timeline = &status.restore_timeline;
    for (phase, after) in &timeline.phases {
        lines.push(line(&format!("restore_ms_{phase:?}"), after.as_millis().to_string()));
    }
    if let Some(after) = timeline.installed {
        lines.push(line("restore_ms_Installed", after.as_millis().to_string()));
    }
    if let Some(restored) = &status.last_restore {
        lines.push(line("restored_anchor", vlsn(restored.anchor)));
        lines.push(line("restored_checkpoint", vlsn(restored.checkpoint)));
        lines.push(line("restored_segments", restored.segments.to_string()));
        lines.push(line("restored_last_vlsn", vlsn(restored.last)));
    }
    if let Some(error) = &status.last_error {
        lines.push(line("last_error", error.clone()));
    }
    lines
}

fn log_lines(status: &Status, sealed: &[SealedSegment]) -> Vec<Line> {
    let sealed_bytes: u64 = sealed.iter().map(|segment| u64::from(segment.bytes)).sum();
    let positions = &status.positions;
    let mut lines = vec![
        line("first_vlsn", vlsn(positions.first)),
        line("last_vlsn", vlsn(positions.last)),
        line("last_lsn", positions.last_lsn.to_string()),
        line("last_term", positions.last_term.to_string()),
        line("last_fingerprint", positions.last_fingerprint.to_string()),
        line("last_sync_vlsn", vlsn(positions.last_sync)),
        line("durable_vlsn", vlsn(positions.durable)),
        line("tail_mark", status.tail_mark.policy.to_string()),
        line("tail_mark_vlsn", vlsn(status.tail_mark.marked)),
        line("tail_mark_exempt", status.tail_mark.exempt().to_string()),
        line("data_sync_us", latencies(&status.sync_latencies.data)),
        line("mark_sync_us", latencies(&status.sync_latencies.mark)),
        line("read_only", status.read_only.clone().unwrap_or_else(|| "no".to_owned())),
        line("anchor_vlsn", vlsn(positions.anchor.vlsn)),
        line("sealed_segments", sealed.len().to_string()),
        line("sealed_bytes", sealed_bytes.to_string()),
    ];
    lines.extend(retention_lines(&status.retention));
    lines.extend(scrub_lines(&status.scrub));
    lines.extend(damage_lines(&status.damage));
    lines
}

fn store_lines(store: &StoreStatus) -> Vec<Line> {
    vec![
        line("applied_vlsn", vlsn(store.applied)),
        line("checkpoint_vlsn", vlsn(store.checkpoint)),
        line("oldest_readable_vlsn", vlsn(store.oldest_readable)),
        line("memtable_bytes", store.memtable_bytes.to_string()),
        line("disk_bytes", store.disk_bytes.to_string()),
        line("disk_files", store.disk_files.to_string()),
    ]
}

/// How much log is kept, why, and for whom.
fn retention_lines(retention: &Retention) -> Vec<Line> {
    let mut lines = vec![
        line("kept_bytes", retention.bytes.to_string()),
        line("kept_segments", retention.segments.to_string()),
        line("front_time_ms", retention.first_ms.unwrap_or(0).to_string()),
        line("front_held_by", retention.held_by.to_string()),
        line("lost_places", retention.lost_places.to_string()),
    ];
    for (index, place) in retention.holders.iter().enumerate() {
        let state = match (place.lost, place.is_away) {
            (Some(_), _) => "lost",
            (None, true) => "away",
            (None, false) => "held",
        };
        let from = place.from.sequence();
        let holder = &place.holder;
        lines.push(line(
            &format!("place{index}"),
            format!(
                "holder={holder},from={from},bytes_behind={},state={state}",
                place.bytes_behind
            ),
        ));
    }
    lines
}

/// How far sealed segments were read again, and what was found damaged.
fn scrub_lines(scrub: &ScrubReport) -> Vec<Line> {
    let mut lines = vec![
        line("scrubbed_segments", scrub.segments.to_string()),
        line("scrubbed_bytes", scrub.bytes.to_string()),
        line("scrub_unread_segments", scrub.unread.to_string()),
        line("scrub_oldest_s", scrub.oldest.map_or(0, |age| age.as_secs()).to_string()),
        line("damaged_blocks", scrub.damaged.len().to_string()),
    ];
    for (index, block) in scrub.damaged.iter().enumerate().take(MOST_BLOCKS) {
        let (first, last) = (block.first.sequence(), block.last.sequence());
        lines.push(line(
            &format!("damaged{index}"),
            format!(
                "segment={},offset={},bytes={},first={first},last={last}",
                block.segment, block.offset, block.bytes
            ),
        ));
    }
    if let Some(pass) = &scrub.ordered {
        let (done, all, found) = (pass.bytes_done, pass.bytes, pass.damaged);
        lines.push(line("scrub_pass", format!("bytes={done},of={all},damaged={found}")));
    }
    if let Some(error) = &scrub.last_error {
        lines.push(line("scrub_last_error", error.to_string()));
    }
    lines
}

/// What became of what was found damaged, and what is damaged still.
fn damage_lines(damage: &DamageReport) -> Vec<Line> {
    let runs = damage.open.iter().filter_map(|open| match open.what {
        Damaged::Entries { first, last, .. } => Some(last.since(first) + 1),
        Damaged::Block { .. } => None,
    });
    let mut lines = vec![
        line("damage_found", damage.found.to_string()),
        line("repaired_blocks", damage.mended_blocks.to_string()),
        line("repaired_runs", damage.mended_runs.to_string()),
        line("faulty_entries", runs.sum::<u64>().to_string()),
    ];
    lines.extend(unrepaired_lines(&damage.open));
    lines
}

fn unrepaired_lines(open: &[OpenDamage]) -> impl Iterator<Item = Line> {
    open.iter().enumerate().take(MOST_BLOCKS).map(|(index, open)| {
        let why =
            open.why.as_ref().map_or_else(|| "not asked for yet".to_owned(), ToString::to_string);
        let again = open.again_in.as_secs();
        line(
            &format!("unrepaired{index}"),
            format!("{}: {why}; asked {} times, again in {again} s", open.what, open.attempts),
        )
    })
}

/// What came of reading all finished log files.
pub(super) fn scrub_summary(summary: &ScrubSummary) -> Vec<Line> {
    let read = &summary.read;
    let mut lines = vec![
        line("segments", read.segments_done.to_string()),
        line("segments_wanted", read.segments.to_string()),
        line("bytes", read.bytes_done.to_string()),
        line("ms", read.elapsed.as_millis().to_string()),
        line("damaged_blocks", read.damaged.to_string()),
        line("repaired_blocks", summary.mended_blocks.to_string()),
        line("repaired_runs", summary.mended_runs.to_string()),
        line("unrepaired", summary.open.len().to_string()),
    ];
    lines.extend(unrepaired_lines(&summary.open));
    lines
}

/// Count, median and slow ones of what was timed, in microseconds.
fn latencies(of: &Latencies) -> String {
    let us = |quantile| of.quantile(quantile).as_micros();
    format!("count={},p50={},p99={},max={}", of.count(), us(0.5), us(0.99), us(1.0))
}

/// Damaged blocks that are listed one by one.
const MOST_BLOCKS: usize = 16;
