//! Claims about serving one subscription as server-sent events, over fakes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use millrace::gateway::live::{
    Anchor, Broken, Command, End, Fault, Request, SseOptions, Sub, WsProtocol, serve_sse, until_cancelled,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::acts::{PATIENCE, Sink, batch, feed, frame, never};

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends")
}

#[tokio::test]
async fn p1_frames_pass_as_they_are_and_are_named_by_text() {
    let (feed, rows) = feed();
    let (mut sink, told, _) = Sink::new();
    feed.send(Ok(batch(&[("enter", "a1")], Some("e.5")))).await.expect("sent");
    drop(feed);
    in_time(serve_sse(Sub::new("s", rows), &mut sink, &SseOptions::default(), never()))
        .await
        .expect("it ends");
    let text = told.text();
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
    assert_eq!(data, frame("enter", "a1", 0));
    let data: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(data["op"], "enter");
    assert_eq!(data.get("at"), None);
    assert_eq!((&data["old_index"], &data["version"]), (&json!(-1), &json!(7)));
}

#[test]
fn p2_a_reanchor_command_has_its_cursor_and_limit() {
    let text = r#"{"action":"reanchor","cursor":{"values":["Alpha",9007199254740993]},"limit":50}"#;
    let Command::Reanchor(Anchor { cursor, limit }) =
        Request::parse(text, WsProtocol::Single).expect("a command").command
    else {
        panic!("another command")
    };
    assert_eq!(cursor.expect("a cursor").get(), r#"{"values":["Alpha",9007199254740993]}"#);
    assert_eq!(limit, Some(50));
}

#[tokio::test]
async fn s1_reset_enters_and_a_live_enter_come_as_events_of_those_names_in_order() {
    let (feed, rows) = feed();
    let (mut sink, told, mut writes) = Sink::new();
    let options = SseOptions::default();
    feed.send(Ok(batch(&[("reset", ""), ("enter", "a"), ("enter", "b")], None))).await.expect("sent");
    let client = async {
        while !told.text().contains("\"b\"") {
            writes.recv().await.expect("written");
        }
        feed.send(Ok(batch(&[("enter", "c")], Some("e.6")))).await.expect("sent");
        drop(feed);
    };
    let serve = serve_sse(Sub::new("s", rows), &mut sink, &options, never());
    let (end, ()) = in_time(async { tokio::join!(serve, client) }).await;
    assert_eq!(end, Ok(End::Ended));
    assert_eq!(told.events(), ["reset", "enter", "enter", "enter"]);
}

#[tokio::test]
async fn s2_each_write_has_its_deadline() {
    let (feed, rows) = feed();
    let (mut sink, told, _) = Sink::new();
    feed.send(Ok(batch(&[("enter", "a")], None))).await.expect("sent");
    drop(feed);
    in_time(serve_sse(Sub::new("s", rows), &mut sink, &SseOptions::default(), never()))
        .await
        .expect("it ends");
    assert_eq!(told.count(), 2);
    assert_eq!(told.arms.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn s3_a_cancelled_connection_ends_well_with_an_error_event_that_says_when_to_come_back() {
    let (_feed, rows) = feed();
    let (mut sink, told, _) = Sink::new();
    let stop = CancellationToken::new();
    stop.cancel();
    let end =
        in_time(serve_sse(Sub::new("s", rows), &mut sink, &SseOptions::default(), until_cancelled(stop)))
            .await;
    assert!(matches!(end, Ok(End::Stopped(fault)) if fault.code == "host_stopping"));
    assert_eq!(told.events(), ["error"]);
    let text = told.text();
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
    let data: Value = serde_json::from_str(data).expect("JSON");
    let wait = data["retry_ms"].as_u64().expect("a wait");
    assert!((1_000..=6_000).contains(&wait), "{wait}");
    assert!(text.contains(&format!("\nretry: {wait}\nevent: error\n")), "{text}");
    assert!(data["fix"].as_str().is_some_and(|fix| !fix.is_empty()));
    assert_eq!(told.closes.load(Ordering::SeqCst), 1);
}

#[test]
fn clients_of_one_host_are_sent_back_at_different_times() {
    let waits: std::collections::HashSet<_> = (0..64).map(|_| Fault::stopping().retry_ms()).collect();
    assert!(waits.len() > 32, "{waits:?}");
}

#[tokio::test]
async fn s4_a_closed_stream_ends_well_and_closes_the_subscription() {
    let (feed, rows) = feed();
    let (mut sink, _, _) = Sink::new();
    let closed = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&closed);
    let sub = Sub::new("s", rows).on_close(move || {
        counts.fetch_add(1, Ordering::SeqCst);
    });
    drop(feed);
    assert_eq!(in_time(serve_sse(sub, &mut sink, &SseOptions::default(), never())).await, Ok(End::Ended));
    assert_eq!(closed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn s5_a_failed_write_ends_the_connection_with_its_error() {
    let (feed, rows) = feed();
    let (mut sink, _, _) = Sink::new();
    sink.fail_at = 2;
    feed.send(Ok(batch(&[("enter", "a")], None))).await.expect("sent");
    let end = in_time(serve_sse(Sub::new("s", rows), &mut sink, &SseOptions::default(), never())).await;
    assert_eq!(end, Err(Broken::Io("gone".into())));
    assert!(feed.is_closed(), "the subscription is closed");
}

#[tokio::test]
async fn s6_an_idle_stream_is_kept_alive_with_comments() {
    let (_feed, rows) = feed();
    let (mut sink, told, mut writes) = Sink::new();
    let options = SseOptions { heartbeat: Duration::from_millis(5), ..SseOptions::default() };
    let client = async {
        while told.text().matches(": ping\n\n").count() < 2 {
            writes.recv().await.expect("written");
        }
    };
    let serve = serve_sse(Sub::new("s", rows), &mut sink, &options, never());
    in_time(async {
        tokio::select! {
            end = serve => panic!("{end:?}"),
            () = client => {}
        }
    })
    .await;
}

#[tokio::test]
async fn b1_an_event_has_its_id_name_data_and_a_blank_line() {
    let (feed, rows) = feed();
    let (mut sink, told, _) = Sink::new();
    feed.send(Ok(batch(&[("leave", "a"), ("enter", "b")], Some("e.7")))).await.expect("sent");
    drop(feed);
    in_time(serve_sse(Sub::new("s", rows), &mut sink, &SseOptions::default(), never()))
        .await
        .expect("it ends");
    let writes = told.writes.lock().expect("no panic").clone();
    let retry = writes[0].strip_prefix("retry: ").and_then(|rest| rest.strip_suffix("\n\n")).expect("retry");
    assert!((1_000..=3_000).contains(&retry.parse::<u64>().expect("a number")));
    let (leave, enter) = (frame("leave", "a", 0), frame("enter", "b", 1));
    let wanted = format!("event: leave\ndata: {leave}\n\nid: e.7\nevent: enter\ndata: {enter}\n\n");
    assert_eq!(writes[1..], [wanted]);
}

#[tokio::test]
async fn all_that_is_ready_goes_out_in_one_write() {
    let rows = futures_util::stream::iter(vec![Ok(batch(&[("update", "a")], Some("t"))); 200]).boxed();
    let (mut sink, told, _) = Sink::new();
    in_time(serve_sse(Sub::new("s", rows), &mut sink, &SseOptions::default(), never()))
        .await
        .expect("it ends");
    assert_eq!(told.events().len(), 200);
    assert_eq!(told.count(), 2, "the retry line, and one write with all");
}

#[tokio::test]
async fn rows_that_change_soon_after_a_write_go_together_in_the_next() {
    let (feed, rows) = feed();
    let (mut sink, told, mut writes) = Sink::new();
    // Long enough for all of what follows; the end of the feed does not cut it short.
    let options = SseOptions { write_pause: Duration::from_secs(2), ..SseOptions::default() };
    let client = async {
        writes.recv().await.expect("the retry line");
        feed.send(Ok(batch(&[("enter", "a")], Some("t")))).await.expect("sent");
        writes.recv().await.expect("the first rows go at once");
        for _ in 0..50 {
            feed.send(Ok(batch(&[("update", "a")], Some("t")))).await.expect("sent");
            // Whoever serves has its turn after each.
            tokio::task::yield_now().await;
        }
        drop(feed);
    };
    let serve = serve_sse(Sub::new("s", rows), &mut sink, &options, never());
    let (end, ()) = in_time(async { tokio::join!(serve, client) }).await;
    assert_eq!(end, Ok(End::Ended));
    assert_eq!(told.events().len(), 51);
    assert_eq!(told.count(), 3, "the retry line, the first rows, and all that came soon after");
}

#[tokio::test]
async fn a_host_that_stops_is_told_at_once_even_while_rows_wait() {
    let (feed, rows) = feed();
    let (mut sink, told, mut writes) = Sink::new();
    let options = SseOptions { write_pause: Duration::from_secs(3_600), ..SseOptions::default() };
    let stop = CancellationToken::new();
    let client = async {
        writes.recv().await.expect("the retry line");
        feed.send(Ok(batch(&[("enter", "a")], Some("t")))).await.expect("sent");
        writes.recv().await.expect("the first rows go at once");
        feed.send(Ok(batch(&[("update", "a")], Some("t")))).await.expect("sent");
        while feed.capacity() < feed.max_capacity() {
            // It was taken in, and waits.
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let serve = serve_sse(Sub::new("s", rows), &mut sink, &options, until_cancelled(stop.clone()));
    let (end, ()) = in_time(async { tokio::join!(serve, client) }).await;
    assert!(matches!(end, Ok(End::Stopped(_))));
    assert_eq!(told.events(), ["enter", "error"]);
}

#[tokio::test]
async fn a_write_takes_in_no_more_than_its_bound() {
    let (mut sink, told, _) = Sink::new();
    let one = batch(&[("update", "a")], Some("t"));
    let options = SseOptions { write_bytes: 10 * one.sse().len(), ..SseOptions::default() };
    let rows = futures_util::stream::iter(vec![Ok(one); 100]).boxed();
    in_time(serve_sse(Sub::new("s", rows), &mut sink, &options, never())).await.expect("it ends");
    assert_eq!(told.count(), 11);
    assert_eq!(told.events().len(), 100);
}

#[tokio::test]
async fn nothing_is_pulled_that_cannot_be_written_and_the_deadline_ends_the_connection() {
    let pulled = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&pulled);
    let endless = futures_util::stream::repeat_with(move || {
        counts.fetch_add(1, Ordering::SeqCst);
        Ok(batch(&[("update", "a")], Some("t")))
    });
    let (mut sink, told, _) = Sink::new();
    sink.stall_at = 2;
    let one = batch(&[("update", "a")], Some("t")).sse().len();
    let within = Duration::from_millis(20);
    let options = SseOptions { write_wait_max: within, write_bytes: one, ..SseOptions::default() };
    let end = in_time(serve_sse(Sub::new("s", endless.boxed()), &mut sink, &options, never())).await;
    assert_eq!(end, Err(Broken::Stalled(within)));
    assert_eq!(told.count(), 2, "the retry line and one batch were taken");
    assert_eq!(pulled.load(Ordering::SeqCst), 2, "and one more was waiting for the client");
}

#[tokio::test]
async fn an_error_of_the_stream_is_the_last_event_behind_what_came_before() {
    let (feed, rows) = feed();
    let (mut sink, told, _) = Sink::new();
    feed.send(Ok(batch(&[("enter", "a")], Some("t")))).await.expect("sent");
    feed.send(Err(Fault::new("live_view_failed", "the view failed"))).await.expect("sent");
    let end = in_time(serve_sse(Sub::new("s", rows), &mut sink, &SseOptions::default(), never())).await;
    assert!(matches!(end, Err(Broken::Fault(fault)) if fault.code == "live_view_failed"));
    assert_eq!(told.events(), ["enter", "error"]);
}

#[tokio::test]
async fn a_subscription_without_closures_can_be_moved_and_closed_all_the_same() {
    let (feed, rows) = feed();
    let mut sub = Sub::new("s", rows);
    sub.reanchor(Anchor::default()).await.expect("nothing happens");
    feed.send(Ok(batch(&[("enter", "a")], None))).await.expect("it still listens");
    assert!(sub.next().await.is_some());
    sub.close();
    assert!(feed.is_closed());
}
