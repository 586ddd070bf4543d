//! Claims about a start with many plugins.

use millrace_tests::embedded::Embedded;
use millrace_tests::guests;
use serde_json::json;

/// Small ones of the guest "resident", which a start loads several at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_brings_many_plugins_back_where_each_stood() -> anyhow::Result<()> {
    const PLUGINS: usize = 9;
    let event = |n: u64| format!("{{\"aggregate\":\"a\",\"agg_id\":\"1\",\"version\":{n},\"type\":\"x\"}}\n");
    let host = Embedded::start().await?;
    for number in 0..PLUGINS {
        host.client.deploy_bytes(guests::resident(number)).await?.ok()?;
    }
    host.client.publish(event(1)).await?;
    host.client.settle().await?;
    let host = host.restart().await?;
    host.client.publish(event(2)).await?;
    host.client.settle().await?;
    let answer = host.client.get("/v1/plugins").await?.ok()?;
    for number in 0..PLUGINS {
        let plugin = &answer["plugins"][number];
        assert_eq!(plugin["name"], format!("resident-{number:06}"));
        // One: the first event is not handled again.
        assert_eq!((&plugin["state"], &plugin["counters"]["events"]), (&json!("running"), &json!(1)));
        assert_eq!(plugin["tasks"][0]["state_bytes"], 8);
    }
    host.stop().await;
    Ok(())
}
