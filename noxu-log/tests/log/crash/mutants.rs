//! Mutants: each deliberate bug makes the enumeration fail.

use noxu_log::Mutant;

use super::enumeration::enumerate;
use super::workload::workload;

fn is_found(mutant: Mutant) {
    match enumerate(&workload(), Some(mutant)) {
        Ok(stats) => panic!("{mutant:?} is not found: {stats}"),
        Err(found) => println!("{mutant:?}: {found}"),
    }
}

macro_rules! found {
    ($($name:ident: $mutant:ident,)*) => {$(
        #[test]
        fn $name() {
            is_found(Mutant::$mutant);
        }
    )*};
}

found! {
    durable_before_the_sync_is_found: DurableBeforeSync,
    a_mark_before_its_data_is_found: MarkBeforeData,
    a_roll_before_the_sync_is_found: SegmentNotSyncedBeforeRoll,
    a_new_segment_whose_name_is_not_durable_is_found: DirNotSynced,
    a_segment_sealed_before_its_successor_is_durable_is_found: SealedBeforeSuccessorDurable,
    segments_dropped_before_the_anchor_is_durable_are_found: AnchorAfterDelete,
    an_intent_cleared_before_the_cut_is_found: IntentClearedBeforeCut,
    a_cut_that_is_not_synced_is_found: CutNotSynced,
    a_mark_not_moved_by_a_truncation_is_found: MarkNotMovedByTruncation,
    lost_entries_that_are_not_saved_are_found: LostNotSaved,
    a_recovery_that_does_not_sync_what_it_found_is_found: FoundNotSynced,
    a_control_file_that_is_not_synced_is_found: ControlNotSynced,
    a_control_file_written_to_one_slot_is_found: ControlWrittenToOneSlot,
    control_slots_that_are_synced_together_are_found: ControlSlotsSyncedTogether,
    a_file_named_before_it_is_synced_is_found: WholeFileNotSynced,
    an_install_that_is_not_marked_is_found: InstallNotMarked,
    an_install_that_swaps_before_the_old_log_is_gone_is_found: SwappingBeforeClear,
    a_mark_not_moved_by_an_install_is_found: MarkNotMovedByInstall,
}
