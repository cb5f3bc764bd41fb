//! Services: what a node answers on its port.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use noxu_log::{Holder, HolderKind, Lost, Pin};
use noxu_util::{GroupId, Name, Vlsn};

use crate::driver::master::{FeederSession, Master, SessionHost};
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::net::dispatcher::{
    Dispatcher, FEEDER_SERVICE_NAME, STATUS_SERVICE_NAME, SYNCUP_SERVICE_NAME,
};
use crate::node::Inner;
use crate::stream::feeder::{FeederHost, FeederStream};
use crate::stream::log_view::LogView;
use crate::stream::syncup_protocol::{SyncupOptions, feeder_syncup};
use crate::wire::handshake::{
    Capabilities, FeederSide, Hello, Mastership, RejectReason, VersionRange, Welcome,
    handshake_as_feeder,
};
use crate::wire::probe::{ProbeAnswer, decode_question};

/// Version of the log format that this build reads and writes.
pub(crate) const LOG_FORMAT: u16 = 1;

/// How long a status question may take to come.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves one connection.
type Serve = fn(&Arc<Inner>, &Arc<dyn Channel>) -> Result<()>;

/// Registers a node's services.
pub(crate) fn register(dispatcher: &Dispatcher, node: &Weak<Inner>) {
    let services: [(&'static str, Serve); 3] = [
        (FEEDER_SERVICE_NAME, serve_feeder),
        (SYNCUP_SERVICE_NAME, serve_syncup),
        (STATUS_SERVICE_NAME, serve_status),
    ];
    for (name, serve) in services {
        let node = Weak::clone(node);
        let handler = move |channel: Arc<dyn Channel>| {
            let Some(node) = node.upgrade() else { return };
            let peer = channel.peer();
            match catch_unwind(AssertUnwindSafe(|| serve(&node, &channel))) {
                Ok(Ok(())) => {}
                Ok(Err(cause)) => {
                    tracing::info!(node = %node.config.name, %peer, service = name, "{cause}");
                    node.note_error(&cause);
                }
                Err(_) => node.fail(&format!("the thread serving {name} to {peer} panicked")),
            }
        };
        dispatcher.register(name, Arc::new(handler));
    }
}

fn serve_status(node: &Arc<Inner>, channel: &Arc<dyn Channel>) -> Result<()> {
    while let Some(frame) = channel.receive(QUESTION_TIMEOUT)? {
        decode_question(&frame)?;
        let control = node.log.control().state();
        let positions = node.log.positions();
        let answer = ProbeAnswer {
            is_master: node.master().is_some(),
            term: control.term,
            first: positions.anchor.vlsn.next(),
            last: positions.last,
            dtvlsn: node.dtvlsn(),
            node: node.config.name.clone(),
            master: node.master_address().unwrap_or_default(),
        };
        channel.send(&answer.encode())?;
    }
    Ok(())
}

fn serve_syncup(node: &Arc<Inner>, channel: &Arc<dyn Channel>) -> Result<()> {
    feeder_syncup(&**channel, &LogView::new(&node.log), &SyncupOptions::default()).map(|_| ())
}

fn serve_feeder(node: &Arc<Inner>, channel: &Arc<dyn Channel>) -> Result<()> {
    let master = std::cell::RefCell::new(None);
    let handshake = handshake_as_feeder(&**channel, &|hello| {
        let sitting = node.wait_for_mastership(node.config.early_replica_wait);
        let welcome = welcome(node, sitting.as_deref(), hello);
        *master.borrow_mut() = sitting;
        welcome
    });
    let (hello, welcome) = match handshake {
        Err(RepError::Rejected(RejectReason::OldTerm { ours, theirs })) if theirs > ours => {
            node.step_down(theirs);
            return Err(RejectReason::OldTerm { ours, theirs }.into());
        }
        other => other?,
    };
    let Some(master) = master.into_inner() else {
        return Err(RepError::NotMaster { master: None });
    };
    let session = master.open_session(
        hello.node,
        hello.incarnation,
        hello.kind,
        hello.address,
        Arc::clone(channel),
    );
    let outcome = feed(node, &master, &session, welcome.capabilities);
    channel.close();
    master.handle_session_closed(&session);
    outcome
}

fn feed(
    node: &Arc<Inner>,
    master: &Arc<Master>,
    session: &FeederSession,
    capabilities: Capabilities,
) -> Result<()> {
    let channel = &*session.channel;
    let options = SyncupOptions {
        probes: capabilities.has(Capabilities::SYNCUP_PROBES),
        ..SyncupOptions::default()
    };
    let Some(start) = feeder_syncup(channel, &LogView::new(&node.log), &options)? else {
        tracing::info!(replica = %session.name, "no matchpoint: the replica goes to restore");
        return Ok(());
    };
    let pin = pin(node, session, start)?;
    master.handle_stream_open(session, start);
    tracing::info!(replica = %session.name, %start, "streaming");
    let host = Arc::new(SessionHost { master: Arc::clone(master), session: session.id, pin });
    let stream = FeederStream::new(
        node.log.clone(),
        Arc::clone(&session.channel),
        Arc::clone(&host) as Arc<dyn FeederHost>,
        node.clock.clone(),
        Arc::clone(&session.core),
    );
    let streamed = std::thread::scope(|scope| {
        let sender = std::thread::Builder::new()
            .name(format!("feed-{}", session.name))
            .spawn_scoped(scope, || stream.run_sender())
            .map_err(|cause| RepError::network(channel.peer(), "starting a thread for", cause))?;
        let acks = stream.run_ack_reader();
        let sent = sender.join().unwrap_or_else(|_| {
            node.fail(&format!("the thread feeding {} panicked", session.name));
            Ok(())
        });
        // The one that failed first closed the channel under the other's hands.
        match (acks, sent) {
            (Err(a), Err(s)) => Err(if matches!(a, RepError::Closed { .. }) { s } else { a }),
            (a, s) => a.and(s),
        }
    });
    // That is what closed the channel, or what a read ahead of it met.
    match host.pin.lost() {
        Some(Lost { at, anchor, .. }) => {
            Err(RepError::LostPlace { replica: session.name.clone(), at, first: anchor.next() })
        }
        None => streamed,
    }
}

/// Keeps the log from `start` on for a replica; a voter keeps its place for a while when it goes.
fn pin(node: &Inner, session: &FeederSession, start: Vlsn) -> Result<Pin> {
    let holder = Holder::new(HolderKind::Stream, session.name.as_str());
    let channel = Arc::clone(&session.channel);
    let mut pin = node.log.pin_with(holder, start, move |_| channel.close())?;
    if node.members().contains(&session.name) {
        pin.set_grace(node.config.absence_grace);
    }
    Ok(pin)
}

fn welcome(node: &Inner, master: Option<&Master>, hello: &Hello) -> Result<Welcome, RejectReason> {
    let control = node.log.control().state();
    let Some(group) = control.group else {
        return Err(RejectReason::NotReady { node: node.config.name.clone() });
    };
    let members = node.members();
    let connected = |name: &Name| master.and_then(|master| master.connected(name));
    let group_id: GroupId = group.id;
    FeederSide {
        versions: VersionRange::SPOKEN,
        group: group_id,
        group_name: &group.name,
        segment_bytes: group.segment_bytes,
        log_format: LOG_FORMAT,
        node: &node.config.name,
        incarnation: control.incarnation,
        epoch: control.epoch,
        term: master.map_or(control.term, Master::term),
        capabilities: Capabilities::OURS,
        wall_clock_ms: node.clock.wall_clock_ms(),
        members: (!members.is_empty()).then_some(&members[..]),
        bound: &|_| None,
        connected: &connected,
        mastership: match master {
            Some(_) => Mastership::Established,
            None => Mastership::Elsewhere { master: node.master_address() },
        },
    }
    .check(hello)
}
