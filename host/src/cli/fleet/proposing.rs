//! Signing a change here, and proposing it to the origin. The private key stays on this machine.

use std::path::{Path, PathBuf};

use clap::Args;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rows;
use super::standing::{Known, Standing};
use crate::cli::client::{ANSWER_WAIT_MAX, Client, Connect, problem, refusal};
use crate::cli::keys::{read_public, read_signing_key};
use crate::cli::{Align, Backoff, CliError, Exit, Output, printable};
use crate::clock::{Clock as _, SystemClock};
use crate::control::changes::{Actor, Change, Present};
use crate::control::fleet::{HostChange, Named};
use crate::control::trust::KeyRole;
use crate::control::{self, ControlEvent, ControlFeedError, EventBody, EventId, SigningKey, UnsignedEvent};

/// How often an event is sent whose answer is lost. It is the same event each time, so it counts once.
const SENDS_MAX: u32 = 4;

/// Who changes something, with which key, and why.
#[derive(Debug, Args)]
pub(in crate::cli) struct SignArgs {
    /// The key that signs it, a file of `millrace keys new`; it is not sent anywhere
    #[arg(long, value_name = "KEYFILE")]
    pub(in crate::cli) key: PathBuf,
    /// Why, for whoever looks at it later
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(in crate::cli) reason: String,
    /// Who changes it; without it the owner in KEYFILE.pub, or else the key's id
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) actor: Option<String>,
    /// Change nothing, and say which hosts would notice
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// Write JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
    #[command(flatten)]
    pub(in crate::cli) connect: Connect,
}

/// A key, and who has it.
#[derive(Debug)]
pub(in crate::cli) struct Author {
    key: SigningKey,
    by: Actor,
}

/// As the origin answers a proposal.
#[derive(Debug, Serialize, Deserialize)]
struct Taken {
    entity: String,
    revision: u64,
    #[serde(default)]
    repeated: bool,
}

impl Author {
    pub(in crate::cli) fn read(args: &SignArgs, role: KeyRole) -> Result<Self, CliError> {
        let key = read_signing_key(&args.key)?;
        // A private key does not say what it is for; its public part does, where it still lies beside it.
        let beside = PathBuf::from(format!("{}.pub", args.key.display()));
        let public = read_public(&beside).ok().filter(|public| public.id().as_deref() == Some(key.id()));
        if let Some(other) = public.as_ref().map(|public| public.role).filter(|other| *other != role) {
            return Err(CliError::usage(
                format!(
                    "{} is a {} key, and a {} key has to sign this",
                    args.key.display(),
                    other.as_str(),
                    role.as_str()
                ),
                format!("name a {0} key with --key; `millrace keys new --role {0}` makes one", role.as_str()),
            ));
        }
        let named = args.actor.clone().or_else(|| public.map(|public| public.owner));
        let name = named.unwrap_or_else(|| key.id().to_owned());
        Ok(Self { key, by: Actor { name, reason: args.reason.clone() } })
    }

    /// A change of a plugin, signed.
    pub(in crate::cli) fn plugin(
        &self,
        plugin: &str,
        known: &Known,
        id: EventId,
        change: Change,
    ) -> Result<ControlEvent, CliError> {
        self.sign(&UnsignedEvent {
            base_event_id: known.event.as_ref().map(|event| event.id().clone()),
            ..change.event(plugin, known.revision, id, &self.by, SystemClock.now().0)
        })
    }

    /// A list of keys, signed. Everything but the list is as in a change of a plugin.
    pub(in crate::cli) fn trust(
        &self,
        trusted: control::Trusted,
        known: &Known,
        revision: u64,
    ) -> Result<ControlEvent, CliError> {
        self.sign(&UnsignedEvent {
            schema_version: control::SCHEMA_VERSION,
            must_understand: true,
            event_id: new_id(),
            kind: control::Kind::TrustChanged,
            body: EventBody::Trust(trusted),
            revision,
            base_revision: known.revision,
            base_event_id: known.event.as_ref().map(|event| event.id().clone()),
            issued_at: SystemClock.now().0,
            expires_at: None,
            actor: self.by.name.clone(),
            reason: self.by.reason.clone(),
        })
    }

    fn sign(&self, event: &UnsignedEvent) -> Result<ControlEvent, CliError> {
        event.sign(&self.key).map_err(|error| unfit(&error))
    }
}

pub(in crate::cli) fn new_id() -> EventId {
    EventId::new(ulid::Ulid::new())
}

/// Changes a plugin as it stands now.
pub(in crate::cli) async fn change(
    plugin: &str,
    args: &SignArgs,
    output: &mut Output,
    make: impl FnOnce(Present<'_>) -> control::Result<Change>,
) -> Result<(), CliError> {
    let author = Author::read(args, KeyRole::Release)?;
    let client = Client::new(&args.connect)?;
    let known = Standing::read(&client).await?.plugin(&client, plugin)?;
    let change = make(known.present(plugin)).map_err(|error| unfit(&error))?;
    let event = author.plugin(plugin, &known, new_id(), change)?;
    propose(&client, &event, args, output).await
}

/// Proposes an event, or with `--dry-run` asks what it would do; says what came of it.
pub(in crate::cli) async fn propose(
    client: &Client,
    event: &ControlEvent,
    args: &SignArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    if args.dry_run {
        return preview(client, event, args.json, output).await;
    }
    let taken = send(client, event).await?;
    if args.json {
        return output.json(&json!({
            "entity": taken.entity, "revision": taken.revision, "repeated": taken.repeated,
            "event_id": event.id(), "type": event.unsigned().kind.as_str(),
        }));
    }
    let Taken { entity, revision, .. } = taken;
    let kind = &event.unsigned().kind;
    output.line(&format!("{} has revision {revision} now: {kind} ({})", printable(&entity), event.id()))
}

async fn send(client: &Client, event: &ControlEvent) -> Result<Taken, CliError> {
    let mut backoff = Backoff::default();
    let mut sends = 1;
    loop {
        let error = match send_once(client, event).await? {
            Ok(taken) => return Ok(taken),
            Err(error) => error,
        };
        if sends >= SENDS_MAX {
            let next_step = "look whether it was taken with `millrace fleet status`, before you repeat it";
            let is_lost = error.exit() == Exit::Unreachable;
            return Err(if is_lost { error.with_next_step(next_step) } else { error });
        }
        sends += 1;
        backoff.sleep().await;
    }
}

/// The inner error may pass, and says nothing of whether the event was taken.
async fn send_once(client: &Client, event: &ControlEvent) -> Result<Result<Taken, CliError>, CliError> {
    let request = client
        .request(Method::POST, client.address(&["v1", "fleet", "events"], &[]))
        .header(reqwest::header::CONTENT_TYPE, "application/json")
        .body(event.to_json())
        .timeout(ANSWER_WAIT_MAX);
    let response = match request.send().await {
        Ok(response) => response,
        // It has not come to anybody.
        Err(error) if error.is_connect() => return Err(client.unreachable(&error)),
        Err(error) => return Ok(Err(client.unreachable(&error))),
    };
    let status = response.status();
    if !status.is_success() {
        let problem = problem(response).await;
        let error = refusal(&problem, status);
        return match problem.code.as_str() {
            "revision_conflict" => Err(conflict(client, event, error).await),
            _ if problem.is_transient() => Ok(Err(error)),
            _ => Err(error),
        };
    }
    match response.bytes().await {
        Ok(body) => {
            serde_json::from_slice(&body).map(Ok).map_err(|error| client.unexpected(&error.to_string()))
        }
        Err(error) => Ok(Err(client.unreachable(&error))),
    }
}

/// Somebody was quicker: says who, and what stands.
async fn conflict(client: &Client, event: &ControlEvent, otherwise: CliError) -> CliError {
    let entity = event.entity();
    let look = match entity.strip_prefix("plugin:") {
        Some(plugin) => format!("`millrace rollout status {plugin}`"),
        None => "`millrace fleet status`".into(),
    };
    let next_step = format!("look at {look}, and repeat the command if it is still what you want");
    let stands = match Standing::read(client).await {
        Ok(standing) => standing.entity(client, &entity),
        Err(error) => Err(error),
    };
    let Ok(known) = stands else { return otherwise.with_next_step(next_step) };
    let why = known.why().map(|why| format!(" ({why})")).unwrap_or_default();
    let base = event.unsigned().base_revision;
    CliError::new(
        Exit::Refused,
        format!(
            "somebody was quicker: {entity} stands at revision {}{why}, and this was made on {base}; nothing changed",
            known.revision
        ),
        next_step,
    )
}

async fn preview(
    client: &Client,
    event: &ControlEvent,
    json: bool,
    output: &mut Output,
) -> Result<(), CliError> {
    let request = client
        .request(Method::POST, client.address(&["v1", "fleet", "preview"], &[]))
        .header(reqwest::header::CONTENT_TYPE, "application/json")
        .body(event.to_json());
    let answer: Value = client.json(request).await?;
    if json {
        return output.json(&answer);
    }
    let changes: Vec<HostChange> = rows(client, answer, "hosts")?;
    if changes.iter().all(|change| change.left_alone) {
        output.line("no host would notice")?;
    }
    if !changes.is_empty() {
        let named =
            |named: Option<&Named>| named.map_or_else(|| "-".into(), |named| printable(&named.version));
        let lines: Vec<Vec<String>> = changes
            .iter()
            .map(|change| {
                vec![
                    printable(&change.host),
                    change.wave.map_or_else(|| "-".into(), |wave| wave.to_string()),
                    named(change.now.as_ref()),
                    named(change.next.as_ref()),
                    named(change.finally.as_ref()),
                    at_once(change).into(),
                ]
            })
            .collect();
        let head = [
            ("HOST", Align::Left),
            ("WAVE", Align::Right),
            ("NOW", Align::Left),
            ("NEXT", Align::Left),
            ("FINALLY", Align::Left),
            ("AT ONCE", Align::Left),
        ];
        output.table(&head, &lines)?;
    }
    output.line("nothing was changed")
}

fn at_once(change: &HostChange) -> &'static str {
    match change {
        HostChange { left_alone: true, .. } => "left alone",
        HostChange { at_once: true, .. } => "yes",
        _ => "no",
    }
}

/// A change that cannot be made, in a command's words.
pub(in crate::cli) fn unfit(error: &ControlFeedError) -> CliError {
    let sentence = printable(&error.to_string());
    match error {
        ControlFeedError::ChangeRefused { plugin, .. } => CliError::new(
            Exit::Refused,
            sentence,
            format!("see how it stands with `millrace rollout status {plugin}`"),
        ),
        _ => CliError::usage(sentence, "change what was asked; nothing was sent"),
    }
}

/// What a file holds, if that is not more than it may.
pub(in crate::cli) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, CliError> {
    use std::io::Read as _;
    let read = || {
        let mut content = Vec::new();
        std::fs::File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut content)?;
        Ok::<_, std::io::Error>(content)
    };
    let content = read().map_err(|error| {
        CliError::failed(
            format!("{} cannot be read: {error}", path.display()),
            "look at the path and its permissions",
        )
    })?;
    if content.len() as u64 > bytes_max {
        return Err(CliError::usage(
            format!("{} has more than {bytes_max} bytes", path.display()),
            "name another file",
        ));
    }
    Ok(content)
}
