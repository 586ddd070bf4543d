//! Asks another host by HTTP, which needs the grant `http`. It does not say so in its manifest: what it
//! imports says enough.
//!
//! The agg-id of an event is where it asks (`127.0.0.1:80/path`), its type how: `http.get` reads the answer,
//! `http.post` sends a body of as many bytes as its payload says, `http.many` begins as many requests and
//! reads none, `http.kept` does so and never lets go of them, `http.turns` does so one after the other, `http.given-up` begins eight as many times and gives seven of
//! them up while they wait at `/never`, `http.unsent` writes such a body to a request that it never sends.

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use serde::Serialize;

static ANSWERS: Table = Table::new(
    "http_answers",
    &[Column::int("status"), Column::int("bytes"), Column::text("beginning"), Column::text("error")],
);

#[derive(Default, Serialize)]
struct Answer {
    status: u16,
    bytes: u64,
    beginning: String,
    error: String,
}

struct Fetches;

impl Processor for Fetches {
    fn manifest() -> Manifest {
        Manifest::new("fetches", "1.0.0").tables(&[&ANSWERS])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let number = event.payload_as::<u64>()?;
        let answer = ask(event.event_type(), event.agg_id(), number);
        out.put(&ANSWERS, event.agg_id(), 0, &answer)
    }
}

#[cfg(target_family = "wasm")]
fn ask(kind: &str, to: &str, number: u64) -> Answer {
    let asked = match kind {
        "http.post" => wire::post(to, number),
        "http.many" => wire::many(to, number),
        "http.kept" => wire::kept(to, number),
        "http.turns" => wire::turns(to, number),
        "http.given-up" => wire::given_up(to, number),
        "http.unsent" => wire::unsent(to, number),
        _ => wire::get(to),
    };
    asked.unwrap_or_else(|error| Answer { error, ..Answer::default() })
}

#[cfg(not(target_family = "wasm"))]
fn ask(_: &str, _: &str, _: u64) -> Answer {
    Answer { error: "there is no WASI outside of WebAssembly".into(), ..Answer::default() }
}

#[cfg(target_family = "wasm")]
mod wire {
    use wasip2::http::outgoing_handler::{FutureIncomingResponse, handle};
    use wasip2::http::types::{Fields, IncomingBody, Method, OutgoingBody, OutgoingRequest, Scheme};
    use wasip2::io::streams::StreamError;

    use super::Answer;

    const PIECE: u64 = 4_096;

    pub(super) fn get(to: &str) -> Result<Answer, String> {
        answer(&send(request(to)?)?)
    }

    pub(super) fn post(to: &str, bytes: u64) -> Result<Answer, String> {
        let request = request(to)?;
        request.set_method(&Method::Post).map_err(|()| "a method")?;
        let body = request.body().map_err(|()| "a body")?;
        let response = send(request)?;
        write(body, bytes)?;
        answer(&response)
    }

    pub(super) fn many(to: &str, number: u64) -> Result<Answer, String> {
        let begun = (0..number).map(|_| send(request(to)?)).collect::<Result<Vec<_>, String>>()?;
        let mut refused = 0;
        for response in &begun {
            response.subscribe().block();
            refused += u64::from(matches!(response.get(), Some(Ok(Err(_)))));
        }
        Ok(Answer { bytes: refused, ..Answer::default() })
    }

    pub(super) fn kept(to: &str, number: u64) -> Result<Answer, String> {
        for _ in 0..number {
            let response = send(request(to)?)?;
            response.subscribe().block();
            // It is there for ever, answer and all.
            let _ = std::mem::ManuallyDrop::new(response);
        }
        Ok(Answer { bytes: number, ..Answer::default() })
    }

    pub(super) fn turns(to: &str, number: u64) -> Result<Answer, String> {
        for turn in 0..number {
            head(&send(request(to)?)?).map_err(|error| format!("turn {turn}: {error}"))?;
        }
        Ok(Answer { bytes: number, ..Answer::default() })
    }

    pub(super) fn given_up(to: &str, number: u64) -> Result<Answer, String> {
        let (authority, _) = to.split_once('/').ok_or("no path")?;
        let never = format!("{authority}/never");
        for turn in 0..number {
            let _waiting = (0..7).map(|_| send(request(&never)?)).collect::<Result<Vec<_>, String>>()?;
            head(&send(request(to)?)?).map_err(|error| format!("turn {turn}: {error}"))?;
        }
        Ok(Answer { bytes: number, ..Answer::default() })
    }

    /// Waits for an answer and reads nothing of it.
    fn head(response: &FutureIncomingResponse) -> Result<(), String> {
        response.subscribe().block();
        let response = response.get().ok_or("no answer")?.map_err(|()| "twice")?;
        response.map(drop).map_err(|error| format!("{error:?}"))
    }

    pub(super) fn unsent(to: &str, bytes: u64) -> Result<Answer, String> {
        let request = request(to)?;
        let body = request.body().map_err(|()| "a body")?;
        write(body, bytes)?;
        Ok(Answer { bytes, ..Answer::default() })
    }

    fn request(to: &str) -> Result<OutgoingRequest, String> {
        let (scheme, to) = match to.strip_prefix("https:") {
            Some(rest) => (Scheme::Https, rest),
            None => (Scheme::Http, to),
        };
        let (authority, path) = to.split_once('/').ok_or("no path")?;
        let request = OutgoingRequest::new(Fields::new());
        request.set_scheme(Some(&scheme)).map_err(|()| "a scheme")?;
        request.set_authority(Some(authority)).map_err(|()| "an authority")?;
        request.set_path_with_query(Some(&format!("/{path}"))).map_err(|()| "a path")?;
        Ok(request)
    }

    fn send(request: OutgoingRequest) -> Result<FutureIncomingResponse, String> {
        handle(request, None).map_err(|error| format!("{error:?}"))
    }

    fn write(body: OutgoingBody, bytes: u64) -> Result<(), String> {
        let stream = body.write().map_err(|()| "a stream")?;
        let piece = vec![b'x'; PIECE as usize];
        let mut left = bytes;
        while left > 0 {
            let now = left.min(PIECE);
            let written = stream.blocking_write_and_flush(&piece[..now as usize]);
            match written {
                Ok(()) => left -= now,
                // The other side has heard enough; its answer says why.
                Err(_) => break,
            }
        }
        drop(stream);
        OutgoingBody::finish(body, None).map_err(|error| format!("{error:?}"))
    }

    fn answer(response: &FutureIncomingResponse) -> Result<Answer, String> {
        response.subscribe().block();
        let response = response.get().ok_or("no answer")?.map_err(|()| "twice")?;
        let response = response.map_err(|error| format!("{error:?}"))?;
        let body = response.consume().map_err(|()| "no body")?;
        let stream = body.stream().map_err(|()| "no stream")?;
        let mut read = Vec::new();
        let (mut bytes, mut error) = (0, String::new());
        loop {
            match stream.blocking_read(64 << 10) {
                Ok(piece) => {
                    bytes += piece.len() as u64;
                    read.extend(piece.iter().take(64_usize.saturating_sub(read.len())));
                }
                Err(StreamError::Closed) => break,
                Err(StreamError::LastOperationFailed(failed)) => {
                    error = failed.to_debug_string();
                    break;
                }
            }
        }
        drop(stream);
        drop(IncomingBody::finish(body));
        let beginning = String::from_utf8_lossy(&read).into_owned();
        Ok(Answer { status: response.status(), bytes, beginning, error })
    }
}

millrace_guest::export!(Fetches);
