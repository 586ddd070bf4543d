//! Serving a socket: one task reads the commands that have come or takes what is ready, writes what came of it in one go,
//! and only then goes on. So a client that does not read is not read from either, and nothing is read from logs for it.

use std::future::ready;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::json;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::appends::Appends;
use super::binary;
use super::commands::{self, About, Appending, Command, Reference, Refused, Subscribe, Target};
use super::follows::Follows;
use super::meter::Meter;
use super::out::Out;
use super::work::{Done, Work};
use crate::channels::{Append, ChannelId, ChannelName, Party, Router};
use crate::gateway::auth::{Caller, Right};
use crate::gateway::channels::process_id;
use crate::gateway::channels::who::Asker;
use crate::gateway::live::pulse::{Pulse, expired, leave};
use crate::gateway::live::{Broken, End, Fault, Framed, Incoming, Until, cause};
use crate::gateway::metrics;
use crate::gateway::problem::Problem;
use crate::gateway::serve::WriteBound;
use crate::limits::{
    CHANNEL_SOCKET_TURN_BYTES, CHANNEL_SOCKET_TURN_MESSAGES_MAX, CHANNEL_SOCKET_TURN_STEPS_MAX,
};

/// How a socket is kept.
#[derive(Clone, Debug)]
pub(super) struct SocketOptions {
    /// Silence of the host after which it says something.
    pub(super) heartbeat: Duration,
    pub(super) write_wait_max: Duration,
    pub(super) first_command_wait_max: Duration,
    pub(super) message_bytes_max: usize,
}

/// Serves a client until it goes, breaks a rule that a socket cannot go on after, or `until` says so. Then all of its
/// subscriptions are over. Dropping the future ends them without a word to the client.
pub(super) async fn serve(
    router: Router,
    caller: Caller,
    conn: &mut Framed<WriteBound>,
    options: &SocketOptions,
    until: Until,
) -> Result<End, Broken> {
    let mut socket = Socket {
        follows: Follows::new(router.clone()),
        appends: Appends::new(router.clone()),
        lane: None,
        router,
        caller,
        conn,
        options,
        until,
        work: Work::new(),
        out: Out::default(),
        begun: false,
        pulse: Pulse::default(),
        meter: Meter::new(),
    };
    let end = socket.serve().await;
    // Boxed, as all that is rare: most sockets only wait, and are small then.
    Box::pin(socket.finish(end)).await
}

struct Socket<'a> {
    router: Router,
    caller: Caller,
    conn: &'a mut Framed<WriteBound>,
    options: &'a SocketOptions,
    until: Until,
    follows: Follows,
    appends: Appends,
    /// Where the last append went: most go where the last one has gone.
    lane: Option<Lane>,
    work: Work,
    /// What is written next.
    out: Out,
    /// A command has come.
    begun: bool,
    pulse: Pulse,
    meter: Meter,
}

/// A channel, and in whose name the client may append to it: that is the same as long as the socket is open.
struct Lane {
    channel: ChannelId,
    who: Party,
    /// The client has said in whose name, and not left it to its credential.
    is_named: bool,
}

impl Lane {
    fn is(&self, process: &str, channel: &str, party: Option<&str>) -> bool {
        self.channel.process.name.as_str() == process
            && self.channel.name.as_str() == channel
            && party.map_or(!self.is_named, |party| self.is_named && self.who.as_str() == party)
    }
}

/// Why no more is gathered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gathered {
    /// Nothing is left, or what is to be written is full.
    All,
    /// It was much, and there may be more.
    Enough,
}

enum Happened {
    Over(Fault),
    Heard(Option<Incoming>),
    Done(Done),
    /// Somebody stands in line.
    Turn,
    Late,
    Quiet,
}

impl Socket<'_> {
    async fn serve(&mut self) -> Result<End, Broken> {
        let mut late = Some(Box::pin(sleep(self.options.first_command_wait_max)));
        let quiet = sleep(self.options.heartbeat);
        tokio::pin!(quiet);
        loop {
            // Nothing else that the client says is heard meanwhile. That is as long as the store needs, or the longest wait
            // for a forerunner; what the client is sent goes on.
            let listens = !self.appends.are_full();
            // Whatever arm is dropped loses nothing: `recv` and `next` are cancel-safe. In this order: nothing is done any
            // more once it is over, and who talks all the time cannot put off its first command. What is done and whose
            // turn it is is looked at below, too, after each message.
            let happened = tokio::select! {
                biased;
                fault = &mut self.until => Happened::Over(fault),
                () = expired(&mut late), if late.is_some() => Happened::Late,
                heard = self.conn.hear(), if listens => Happened::Heard(heard),
                Some(done) = self.work.next(), if !self.work.is_empty() => Happened::Done(done),
                () = ready(()), if self.follows.have_turns() => Happened::Turn,
                () = &mut quiet => Happened::Quiet,
            };
            match happened {
                Happened::Over(fault) => return Ok(End::Stopped(fault)),
                Happened::Heard(None) => return Ok(End::Disconnected),
                Happened::Heard(Some(incoming)) => self.heard_all(incoming)?,
                Happened::Done(done) => self.done(done),
                Happened::Turn => {}
                Happened::Late => return Err(self.too_late().into()),
                Happened::Quiet => {
                    self.out.text(&json!({ "op": "heartbeat" }));
                    // What reads on its own, like a browser, says nothing without being asked. An answer that is not read
                    // is not missing.
                    if listens {
                        Box::pin(self.pulse.ping(self.conn, self.options.write_wait_max)).await?;
                    }
                }
            }
            if self.begun {
                late = None;
            }
            if self.gather() == Gathered::Enough {
                // Others have their turn, and what ends this socket is heard.
                yield_now().await;
            }
            if self.appends.were_followed() {
                // Who follows is told before who has appended, and not only once that has no more to say.
                yield_now().await;
            }
            let says = !self.out.is_empty();
            self.flush().await?;
            if says {
                quiet.as_mut().reset(Instant::now() + self.options.heartbeat.max(Duration::from_millis(1)));
            }
        }
    }

    /// Takes what is ready, up to the bounds: what has nothing to write may be ready again at once.
    fn gather(&mut self) -> Gathered {
        for _ in 0..CHANNEL_SOCKET_TURN_STEPS_MAX {
            if self.out.is_full() {
                return Gathered::All;
            }
            let is_idle = self.work.is_empty();
            let done = if is_idle { None } else { self.work.next().now_or_never().flatten() };
            if let Some(done) = done {
                self.done(done);
            } else if !self.follows.take_turn(&self.work, &mut self.out) {
                return Gathered::All;
            }
        }
        Gathered::Enough
    }

    fn done(&mut self, done: Done) {
        let out = &mut self.out;
        match done {
            Done::Opened(number, opened) => self.follows.opened(number, opened, &self.work, out),
            Done::Changed(number) => self.follows.changed(number),
            Done::Read(number, subscription, read) => self.follows.was_read(number, subscription, read, out),
            Done::Begun(number, begun) => self.appends.begun(number, begun, &self.work, out),
            Done::Appended(number, answer) => self.appends.appended(number, answer, &self.work, out),
        }
    }

    /// Does what a message asks for, and those that have come along with it: what comes of them goes out together, in
    /// their order.
    fn heard_all(&mut self, first: Incoming) -> Result<(), Broken> {
        let (mut incoming, mut messages, mut bytes) = (first, 0, 0);
        loop {
            messages += 1;
            bytes += size_of_message(&incoming);
            self.pulse.heard();
            self.heard(incoming)?;
            self.gather();
            let is_enough =
                messages >= CHANNEL_SOCKET_TURN_MESSAGES_MAX || bytes >= CHANNEL_SOCKET_TURN_BYTES;
            if is_enough || self.out.is_full() || self.appends.are_full() {
                return Ok(());
            }
            let Some(next) = self.conn.hear_now() else { return Ok(()) };
            incoming = next;
        }
    }

    /// Does what a message asks for.
    fn heard(&mut self, incoming: Incoming) -> Result<(), Broken> {
        let limits = self.router.limits();
        let message = incoming.readable("channel_message_bytes_max", self.options.message_bytes_max)?;
        let read = match &message {
            Incoming::Text(text) => commands::read(text, limits),
            Incoming::Binary(bytes) => binary::read(bytes),
            _ => return Ok(()),
        };
        let done = read.and_then(|command| {
            self.begun = true;
            self.obey(command)
        });
        if let Err((about, problem)) = done {
            if let About::Append(reference) = &about {
                self.note_refused(&message, reference);
            }
            self.out.refuse(&about, &problem);
        }
        Ok(())
    }

    /// An append was refused before anybody looked where it was to go.
    fn note_refused(&mut self, message: &Incoming, reference: &Reference) {
        let target = match message {
            Incoming::Text(text) => Target::of_text(text),
            Incoming::Binary(bytes) => binary::target(bytes),
            _ => None,
        };
        let Some(target) = target.filter(|target| !target.closes()) else { return };
        // Where nobody may append, nobody ends anything either.
        if let Ok(lane) = self.lane_of(&target.process, &target.channel, target.party.as_deref()) {
            self.appends.refused(&lane, reference);
        }
    }

    fn obey(&mut self, command: Command<'_>) -> Result<(), Refused> {
        match command {
            Command::Subscribe(asked) => {
                let about = About::Subscription(asked.id.clone());
                self.subscribe(asked).map_err(|problem| (about, problem))
            }
            Command::Credit { id, add } => {
                self.follows.credit(&id, add).map_err(|problem| (About::Subscription(id), problem))
            }
            Command::Unsubscribe { id } => {
                let ended = self.follows.unsubscribe(&id, &mut self.out);
                ended.map_err(|problem| (About::Subscription(id), problem))
            }
            Command::Append(asked) => {
                let about = About::Append(asked.reference.clone());
                self.append(asked).map_err(|problem| (about, problem))
            }
            Command::Ping { nonce } => {
                let answer = match nonce {
                    Some(nonce) => json!({ "op": "heartbeat", "nonce": nonce }),
                    None => json!({ "op": "heartbeat" }),
                };
                self.out.text(&answer);
                Ok(())
            }
        }
    }

    fn subscribe(&mut self, asked: Subscribe) -> Result<(), Problem> {
        self.caller.needs_everything()?;
        let actor = Asker::named(self.caller.clone(), asked.party.as_deref())?.actor()?;
        let channel = self.channel(&asked.process, &asked.channel)?;
        self.follows.subscribe(asked, channel, actor, &self.work)
    }

    fn append(&mut self, asked: Appending<'_>) -> Result<(), Problem> {
        let Appending { reference, process, channel, party, epoch, entries } = asked;
        let known = self.lane.take().filter(|lane| lane.is(&process, &channel, party.as_deref()));
        let lane = match known {
            Some(lane) => lane,
            None => {
                self.caller.needs(Right::Publish)?;
                let (channel, who) = self.lane_of(&process, &channel, party.as_deref())?;
                Lane { channel, who, is_named: party.is_some() }
            }
        };
        let append = Append { who: lane.who.clone(), epoch, entries };
        self.appends.push(reference, &lane.channel, append, &self.work, &mut self.out);
        self.lane = Some(lane);
        Ok(())
    }

    fn lane_of(
        &self,
        process: &str,
        channel: &str,
        party: Option<&str>,
    ) -> Result<(ChannelId, Party), Problem> {
        let who = Asker::named(self.caller.clone(), party)?.party()?;
        Ok((self.channel(process, channel)?, who))
    }

    fn channel(&self, process: &str, channel: &str) -> Result<ChannelId, Problem> {
        Ok(ChannelId { process: process_id(&self.caller, process)?, name: ChannelName::new(channel)? })
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        if self.out.is_empty() {
            return Ok(());
        }
        let wrote = Box::pin(self.out.write(self.conn, self.options.write_wait_max)).await?;
        self.meter.wrote(wrote);
        Ok(())
    }

    /// The last words, and the close.
    async fn finish(mut self, end: Result<End, Broken>) -> Result<End, Broken> {
        // Nothing more comes of them while the rest is said.
        self.work.clear();
        if let Ok(End::Stopped(fault)) | Err(Broken::Fault(fault)) = &end {
            metrics::problem(fault.code, 1);
            self.out.closing(fault);
        }
        let said = match &end {
            Err(Broken::Stalled(_) | Broken::Io(_)) | Ok(End::Disconnected) => Ok(()),
            _ => self.flush().await,
        };
        let end = match (said, end) {
            (Err(broken), Ok(_)) => Err(broken),
            (_, end) => end,
        };
        leave(self.conn, &end).await;
        self.meter.ended(cause(&end));
        end
    }

    fn too_late(&self) -> Fault {
        let wait = self.options.first_command_wait_max;
        let detail = format!("no command came for {wait:?}; live_first_command_wait_max is {wait:?}");
        Fault::new("live_first_command_wait_max", detail)
    }
}

fn size_of_message(incoming: &Incoming) -> usize {
    match incoming {
        Incoming::Text(text) => text.len(),
        Incoming::Binary(bytes) => bytes.len(),
        _ => 0,
    }
}
