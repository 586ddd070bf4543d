//! Components that were built with the grant `random`: what they draw is nobody's to foresee. Without it, chance is the same
//! in every replay: that is in `js` and `python`.

use std::collections::BTreeSet;
use std::fs;

use bytes::Bytes;
use millrace_tests::embedded::Embedded;
use millrace_tests::guests::lasting_project;
use serde_json::{Value, json};

use crate::commands::ran;

const JS: &str = r"
import { processor, table, text } from '../millrace/index.mjs';

const DRAWS = table('draws', { columns: { number: text(), uuid: text(), bytes: text() } });

class Drawing {
  static manifest = { name: 'draws-js', version: '0.1.0', types: ['*'], tables: [DRAWS], grants: ['random'] };

  handle(event, out) {
    const [bytes] = crypto.getRandomValues(new BigUint64Array(1));
    out.put(DRAWS, event.aggId, 0, {
      number: String(Math.random()), uuid: crypto.randomUUID(), bytes: String(bytes),
    });
  }
}

export const handler = processor(Drawing);
";

const PYTHON: &str = r#"
import os
import random
import uuid

from millrace import Processor, Table, export, text

DRAWS = Table("draws", {"number": text(), "uuid": text(), "bytes": text()})


class Drawing(Processor):
    manifest = dict(
        name="draws-python",
        version="0.1.0",
        types=["*"],
        tables=[DRAWS],
        grants=["random"],
    )

    def load(self, context, saved):
        pass

    def handle(self, event, out):
        drawn = {"number": str(random.random()), "uuid": str(uuid.uuid4()), "bytes": os.urandom(8).hex()}
        out.put(DRAWS, event.agg_id, 0, drawn)


export(Drawing)
"#;

/// The component of a plugin of one file.
async fn built(name: &str, language: &str, entry: &str, source: &str) -> Bytes {
    let dir = lasting_project(name).expect("the folder is the tests'");
    let project = format!(
        "[plugin]\nname = \"{name}\"\nlanguage = \"{language}\"\nentry = \"{entry}\"\ngrants = [\"random\"]\n"
    );
    let entry = dir.join(entry);
    fs::create_dir_all(entry.parent().expect("a folder")).expect("the folder is the tests'");
    fs::write(entry, source).expect("the folder is the tests'");
    fs::write(dir.join("plugin.toml"), project).expect("the folder is the tests'");
    fs::write(dir.join("package.json"), r#"{ "private": true, "type": "module" }"#)
        .expect("the folder is the tests'");
    let (ended, said) = ran(&["plugin", "build", dir.to_str().expect("UTF-8")]).await;
    ended.unwrap_or_else(|error| panic!("it is not built: {error}\n{said}"));
    fs::read(dir.join("target").join(format!("{name}.wasm"))).expect("it is built").into()
}

/// What is drawn at the first events of a new host.
async fn drawn(name: &str, component: &Bytes) -> Vec<Value> {
    let host = Embedded::start_with_code_of(vec![component.clone()], |config| {
        config.plugins.entry(name.to_owned()).or_default().grants = vec!["random".into()];
    })
    .await
    .expect("a host");
    host.client.deploy_bytes(component.clone()).await.expect("an answer").ok().expect("it is deployed");
    let event = |agg_id: &str| {
        let event = json!({ "aggregate": "draw", "agg_id": agg_id, "version": 1, "type": "draw.asked" });
        format!("{event}\n")
    };
    host.client.publish(event("a") + &event("b")).await.expect("the events are taken");
    let rows = |answer: &Value| answer["rows"].as_array().cloned().unwrap_or_default();
    let answer = host.client.wait_for("/v1/tables/draws", |answer| rows(&answer.json()).len() == 2).await;
    let rows = rows(&answer.expect("both are handled").json());
    host.stop().await;
    rows.into_iter().map(|row| row["values"].clone()).collect()
}

/// Whatever was drawn at the same positions of two hosts is different each time.
async fn nothing_is_drawn_twice(name: &str, language: &str, entry: &str, source: &str) {
    let component = built(name, language, entry, source).await;
    let draws = [drawn(name, &component).await, drawn(name, &component).await].concat();
    for column in ["number", "uuid", "bytes"] {
        let of_column: Vec<_> = draws.iter().filter_map(|draw| draw[column].as_str()).collect();
        assert_eq!(of_column.len(), 4, "{draws:?}");
        assert_eq!(BTreeSet::from_iter(&of_column).len(), 4, "`{column}`: {of_column:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chance_that_is_granted_is_real_in_js() {
    nothing_is_drawn_twice("draws-js", "js", "src/plugin.mjs", JS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chance_that_is_granted_is_real_in_python() {
    nothing_is_drawn_twice("draws-python", "python", "app.py", PYTHON).await;
}
