//! Who follows, as server-sent events: as a browser does, with the id of the last event whenever the stream breaks.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Place, Said, Scene};

/// What a follower has come to, from the beginning to the end of its channel.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) process: &'static str,
    pub(super) channel: &'static str,
    /// The position of the last entry that it was sent, or was told that it missed.
    pub(super) position: u64,
    pub(super) missed: u64,
    pub(super) streams: usize,
    /// Of the last event.
    pub(super) id: Option<String>,
    closed: bool,
}

/// Follows a channel until it is told that nothing more comes.
pub(super) async fn follow(scene: Arc<Scene>, place: Arc<Place>) -> Followed {
    let (process, channel) = (place.process, place.channel);
    let mut followed =
        Followed { process, channel, position: 0, missed: 0, streams: 0, id: None, closed: false };
    while !followed.closed {
        // Why a stream is over is nobody's business: the host is killed.
        if followed.read_on(&scene, &place).await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    followed
}

pub(super) fn request(scene: &Scene, place: &Place, id: Option<&str>) -> reqwest::RequestBuilder {
    let url = format!("{}{}/entries?payload=text&as=sub", scene.url, place.path());
    let request = scene.http.get(url).header("accept", "text/event-stream");
    match id {
        Some(id) => request.header("last-event-id", id),
        None => request,
    }
}

impl Followed {
    /// One stream, as far as it goes.
    async fn read_on(&mut self, scene: &Scene, place: &Place) -> reqwest::Result<()> {
        let mut answer = request(scene, place, self.id.as_deref()).send().await?;
        assert_eq!(answer.status(), 200, "{}", place.path());
        self.streams += 1;
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            text.extend_from_slice(&chunk);
            // The last event may be torn, and comes again then.
            while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = text.drain(..end + 2).collect();
                self.take(place, std::str::from_utf8(&event).expect("UTF-8"));
            }
        }
        Ok(())
    }

    fn take(&mut self, place: &Place, event: &str) {
        let line = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        // A heartbeat has none.
        let Some(name) = line("event: ") else { return };
        let data: Value = serde_json::from_str(line("data: ").expect("data")).expect("JSON");
        match name {
            "ready" => assert_eq!(data["after"], self.position, "where it was: {event}"),
            "entry" => {
                let (position, said) = Said::read(&data);
                assert_eq!(position, self.position + 1, "neither hole nor repeat: {event}");
                self.position = position;
                place.notes().followed.insert(position, said);
            }
            "lagged" => {
                let missed = data["missed"].as_u64().expect("a number");
                assert!(missed > 0 && place.drops(), "{}: {event}", place.path());
                assert_eq!(data["resume_at"], self.position + missed + 1, "{event}");
                self.missed += missed;
                self.position += missed;
            }
            "closed" => {
                assert_eq!(data, json!({ "reason": "ended", "last": self.position }), "{}", place.path());
                self.closed = true;
            }
            // Such as `gap`: the log has not what it has told.
            _ => panic!("{} after position {}: {event}", place.path(), self.position),
        }
        let id = line("id: ").expect("what can be resumed from has an id").to_owned();
        let (_, position) = id.trim_end_matches(".end").split_once('.').expect("an incarnation");
        assert_eq!(position, self.position.to_string(), "{event}");
        self.id = Some(id);
    }
}
