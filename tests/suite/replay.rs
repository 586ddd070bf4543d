//! Claims about the flights of January 2013, from the upload to every row: what a user does first.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use millrace_tests::embedded::{Client, Embedded};
use millrace_tests::flights::{self, Emitted, Expected, Rows};
use serde_json::{Value, json};

pub(super) const SAMPLES: [&str; 3] = ["flight-board", "carrier-stats", "delay-watch"];
const TABLES: [&str; 4] = ["airports", "alerts", "carriers", "flights"];

async fn host(lanes: Option<u32>) -> Result<Embedded> {
    let host = Embedded::start_lent(&SAMPLES, |config| {
        for name in SAMPLES {
            config.plugins.entry(name.into()).or_default().lanes = lanes;
        }
    })
    .await?;
    for name in SAMPLES {
        host.client.deploy(name).await?;
    }
    Ok(host)
}

fn upload(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

/// Every row of a table as the edge answers it, by key: smallest pages that still end in time.
async fn stored(client: &Client, table: &str) -> Result<BTreeMap<String, Value>> {
    let rows = client.rows(table, "limit=1000").await?;
    let found = rows.len();
    let rows: BTreeMap<String, Value> = rows
        .into_iter()
        .map(|row| Ok((row["key"].as_str().context("a row has a key")?.to_owned(), row)))
        .collect::<Result<_>>()?;
    ensure!(rows.len() == found, "pages of `{table}` repeat a row");
    Ok(rows)
}

/// Says which row differs, rather than printing two tables.
fn assert_rows(table: &str, found: &BTreeMap<String, Value>, expected: &Rows) {
    for (key, row) in expected {
        assert_eq!(found.get(key).map(|row| &row["values"]), Some(row), "{table}, row {key}");
    }
    assert_eq!(found.len(), expected.len(), "{table} has rows that nobody expects");
}

fn assert_versions(table: &str, found: &BTreeMap<String, Value>, expected: &BTreeMap<String, u64>) {
    for (key, version) in expected {
        assert_eq!(found[key]["version"], json!(version), "{table}, row {key}");
    }
}

async fn assert_everything_is_as_expected(client: &Client, expected: &Expected) -> Result<()> {
    let flights = stored(client, "flights").await?;
    assert_rows("flights", &flights, &expected.flights);
    assert_versions("flights", &flights, &expected.flight_versions);
    let alerts = stored(client, "alerts").await?;
    assert_rows("alerts", &alerts, &expected.alerts);
    assert_versions("alerts", &alerts, &expected.alert_versions);
    assert_rows("carriers", &stored(client, "carriers").await?, &expected.carriers);
    assert_rows("airports", &stored(client, "airports").await?, &expected.airports);

    let mut emitted: BTreeMap<String, Vec<Emitted>> = BTreeMap::new();
    for event in client.events("alert.*").await? {
        let text = |member: &str| event[member].as_str().unwrap_or_default().to_owned();
        assert_eq!((text("aggregate").as_str(), &event["depth"]), ("alert", &json!(1)), "{event}");
        let airport = text("agg_id").split_once('/').context("an alert is airport/number")?.0.to_owned();
        emitted.entry(airport).or_default().push(Emitted {
            agg_id: text("agg_id"),
            event_type: text("type"),
            version: event["version"].as_u64().context("an event has a version")?,
            at: text("at"),
            payload: event["payload"].clone(),
        });
    }
    for (airport, events) in &expected.emitted {
        let found = emitted.get(airport).map_or(&[][..], Vec::as_slice);
        for (index, event) in events.iter().enumerate() {
            assert_eq!(found.get(index), Some(event), "alert event {index} of {airport}");
        }
    }
    let count = |of: &BTreeMap<String, Vec<Emitted>>| of.values().map(Vec::len).sum::<usize>();
    assert_eq!(count(&emitted), count(&expected.emitted), "there are alerts that nobody expects");
    Ok(())
}

/// January goes in; every row and every alert comes out.
pub(super) async fn january_is_as_expected(client: &Client) -> Result<()> {
    let lines = flights::lines()?;
    let expected = Expected::of(&lines)?;
    client.publish(upload(&lines)).await?;
    client.settle().await?;
    assert_everything_is_as_expected(client, &expected).await
}

/// The numbers that the documentation names, by the queries that a user would ask.
async fn assert_known_numbers(client: &Client) -> Result<()> {
    assert_eq!(client.rows("flights", "limit=1000").await?.len(), 26_968);
    for (status, flights) in [("arrived", 26_080), ("cancelled", 512), ("departed", 228), ("scheduled", 148)]
    {
        let rows = client.rows("flights", &format!("limit=1000&where=status:eq:{status}")).await?;
        assert_eq!(rows.len(), flights, "{status}");
    }
    for (carrier, flights, departed, sum) in
        [("UA", 4_636, 4_584, 37_434), ("EV", 4_162, 3_957, 93_304), ("B6", 4_412, 4_381, 40_115)]
    {
        let row = client.get(&format!("/v1/tables/carriers/{carrier}")).await?.ok()?;
        let values = &row["row"]["values"];
        let found = (&values["flights"], &values["departed"], &values["delay_sum_min"]);
        assert_eq!(found, (&json!(flights), &json!(departed), &json!(sum)), "{carrier}");
    }
    let worst = client.get("/v1/tables/flights?order=dep_delay_min:desc&limit=5").await?.ok()?;
    let delays: Vec<&Value> =
        worst["rows"].as_array().context("rows")?.iter().map(|row| &row["values"]["dep_delay_min"]).collect();
    assert_eq!(delays, [1_301, 1_126, 853, 599, 502]);
    assert_eq!(worst["rows"][0]["key"], "2013-01-09/HA51/JFK");

    let raised = client.events("alert.raised").await?;
    let of = |airport: &str| raised.iter().filter(|event| event["payload"]["airport"] == airport).count();
    assert_eq!((raised.len(), of("EWR"), of("JFK"), of("LGA")), (103, 44, 37, 22));
    assert_eq!(client.events("alert.cleared").await?.len(), 101);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn january_gives_every_expected_row_and_a_repeated_upload_changes_nothing() -> Result<()> {
    let lines = flights::lines()?;
    let expected = Expected::of(&lines)?;
    let host = host(None).await?;
    let client = &host.client;
    let answers = client.publish(upload(&lines)).await?;
    assert_eq!(answers.len(), lines.len(), "each line has an answer");
    assert!(answers.iter().all(|answer| answer["repeated"] == json!(false)));
    client.settle().await?;
    assert_everything_is_as_expected(client, &expected).await?;
    assert_known_numbers(client).await?;

    let mut before = Vec::new();
    for table in TABLES {
        before.push(stored(client, table).await?);
    }
    let events = client.events("").await?.len();
    assert_eq!(events, lines.len() + 204);
    let again = client.publish(upload(&lines)).await?;
    client.settle().await?;
    for (first, repeat) in answers.iter().zip(&again) {
        assert_eq!((&repeat["repeated"], &repeat["position"]), (&json!(true), &first["position"]));
    }
    assert_eq!(again.len(), answers.len());
    assert_eq!(client.events("").await?.len(), events, "no event was doubled");
    for (table, before) in TABLES.iter().zip(before) {
        // Revisions, too: nothing was so much as written again.
        assert!(stored(client, table).await? == before, "`{table}` changed");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_lanes_give_the_rows_of_one() -> Result<()> {
    let host = host(Some(4)).await?;
    january_is_as_expected(&host.client).await?;
    for name in SAMPLES {
        let status = host.client.get(&format!("/v1/plugins/{name}")).await?.ok()?;
        assert_eq!(status["tasks"].as_array().map(Vec::len), Some(4), "{status}");
        assert_eq!(status["counters"]["dead_letters"], 0, "{status}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_comes_late_reads_january_from_the_log() -> Result<()> {
    let lines = flights::lines()?;
    let expected = Expected::of(&lines)?;
    let host = Embedded::start().await?;
    let (first, rest) = lines.split_at(lines.len() / 2);
    host.client.publish(upload(first)).await?;
    // Alerts before the board: it finds their events in the log.
    for name in ["delay-watch", "carrier-stats"] {
        host.client.deploy(name).await?;
    }
    host.client.settle().await?;
    let host = host.restart().await?;
    host.client.publish(upload(rest)).await?;
    host.client.deploy("flight-board").await?;
    host.client.settle().await?;
    assert_everything_is_as_expected(&host.client, &expected).await
}
