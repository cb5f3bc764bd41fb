//! Snapshot: what a life says about itself at one moment.

use super::Life;
use crate::status::Status;

impl Life {
    /// Everything it can say.
    pub fn status(&self) -> Status {
        let control = self.log.control().state();
        let (members, is_voter) = (self.members(), self.is_voter());
        let master = self.master_address();
        let (role, reason, mastership) = {
            let public = self.public.lock();
            let reason = public.failure.clone().unwrap_or_else(|| public.reason.clone());
            (public.role(), reason, public.mastership.clone())
        };
        let streaming = self.link.lock().stream.is_some();
        let notes = self.notes.lock();
        Status {
            name: self.config.name.clone(),
            incarnation: control.incarnation,
            group: control.group,
            members,
            is_voter,
            role,
            reason,
            term: control.term,
            master,
            positions: self.log.positions(),
            retention: self.log.retention(),
            scrub: self.log.scrub_report(),
            damage: self.damage(),
            dtvlsn: mastership.as_ref().map_or_else(|| self.housekeeper.dtvlsn(), |m| m.dtvlsn()),
            visible: self.applier.limit(),
            applied: self.applier.applied(),
            commit_floor: control.commit_floor,
            read_only: self.log.read_only().map(|cause| cause.to_string()),
            tail_mark: self.log.mark_status(),
            sync_latencies: self.log.sync_latencies(),
            streaming,
            replicas: mastership.as_ref().map_or_else(Vec::new, |m| m.replicas()),
            recoveries: mastership.as_ref().map_or_else(Vec::new, |m| m.recovering.projections()),
            last_syncup: notes.last_syncup.clone(),
            last_rollback: notes.last_rollback.clone(),
            restore: notes.restore.clone(),
            restore_timeline: notes.restore_timeline.clone(),
            last_restore: notes.last_restore.clone(),
            last_error: notes.last_error.clone(),
        }
    }
}
