//! Mutants: each deliberate bug makes the enumeration fail.

use noxu_log::{MarkPolicy, Mutant};

use super::enumeration::enumerate;
use super::workload::{Step, install_workload, small_workload, workload};

/// Enumerates the crashes of the workloads, in turn, until one of them is not survived.
fn is_found(mutant: Mutant, workloads: &[fn() -> Vec<Step>]) {
    for workload in workloads {
        match enumerate(&workload(), MarkPolicy::Strict, Some(mutant)) {
            Ok(stats) => println!("{mutant:?}: not yet, {stats}"),
            Err(found) => return println!("{mutant:?}: {found}"),
        }
    }
    panic!("{mutant:?} is not found");
}

macro_rules! found {
    ($($name:ident: $mutant:ident in $($workload:ident),+;)*) => {$(
        #[test]
        fn $name() {
            is_found(Mutant::$mutant, &[$($workload),+]);
        }
    )*};
}

found! {
    an_acknowledgement_before_the_mark_is_synced_is_found: ToldBeforeMark in small_workload, workload;
    durable_before_the_sync_is_found: DurableBeforeSync in small_workload, workload;
    a_mark_before_its_data_is_found: MarkBeforeData in small_workload, workload;
    a_roll_before_the_sync_is_found: SegmentNotSyncedBeforeRoll in workload;
    a_new_segment_whose_name_is_not_durable_is_found: DirNotSynced in small_workload, workload;
    a_segment_sealed_before_its_successor_is_durable_is_found: SealedBeforeSuccessorDurable in workload;
    segments_dropped_before_the_anchor_is_durable_are_found: AnchorAfterDelete in small_workload, workload;
    an_intent_cleared_before_the_cut_is_found: IntentClearedBeforeCut in small_workload, workload;
    a_cut_that_is_not_synced_is_found: CutNotSynced in small_workload, workload;
    a_mark_not_moved_by_a_truncation_is_found: MarkNotMovedByTruncation in small_workload, workload;
    lost_entries_that_are_not_saved_are_found: LostNotSaved in small_workload, workload;
    a_recovery_that_does_not_sync_what_it_found_is_found: FoundNotSynced in small_workload, workload;
    a_control_file_that_is_not_synced_is_found: ControlNotSynced in small_workload, workload;
    a_control_file_written_to_one_slot_is_found: ControlWrittenToOneSlot in small_workload, workload;
    control_slots_that_are_synced_together_are_found: ControlSlotsSyncedTogether in small_workload, workload;
    a_file_named_before_it_is_synced_is_found: WholeFileNotSynced in small_workload, workload;
    an_install_that_is_not_marked_is_found: InstallNotMarked in install_workload;
    an_install_that_swaps_before_the_old_log_is_gone_is_found: SwappingBeforeClear in install_workload;
    a_mark_not_moved_by_an_install_is_found: MarkNotMovedByInstall in install_workload;
}
