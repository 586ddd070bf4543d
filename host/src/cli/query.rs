//! `millrace query`: rows of a table.

use std::fmt;

use clap::Args;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::client::{Client, Connect};
use super::{Align, CliError, Output, printable};

/// Characters of a cell, on a terminal.
const CELL_CHARS_MAX: usize = 60;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace query carriers                                  the first rows, by key
  millrace query flights --where status:eq:cancelled --order scheduled:desc --limit 20
  millrace query flights --where carrier:in:UA,B6 --where dep_delay_min:gt:60
  millrace query flights --cursor CURSOR                   the next page
  millrace query flights --all --json                      every row, one a line, for scripts

Operators: eq, ne, gt, gte, lt, lte, in, notin, like, ilike, isnull, isnotnull.
`key`, `version` and `revision` may stand where a column may.")]
pub(super) struct QueryArgs {
    /// Which table
    table: String,
    /// A condition COLUMN:OPERATOR:VALUE; all must hold
    #[arg(long = "where", value_name = "CONDITION")]
    conditions: Vec<String>,
    /// COLUMN, COLUMN:asc or COLUMN:desc; may be repeated
    #[arg(long, value_name = "ORDER")]
    order: Vec<String>,
    /// Rows of a page
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<u32>,
    /// Go on where a page ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    /// All pages, one after another; rows that change meanwhile may show either way
    #[arg(long)]
    all: bool,
    /// Write JSON: the page, or with --all one row a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Serialize, Deserialize)]
struct RowsPage {
    table: String,
    revision: Box<RawValue>,
    rows: Vec<RowLine>,
    next: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct RowLine {
    key: String,
    version: Option<Box<RawValue>>,
    revision: Option<Box<RawValue>>,
    values: Fields,
}

/// A JSON object as it came: order, and every digit of a number.
struct Fields(Vec<(String, Box<RawValue>)>);

pub(super) async fn run(args: QueryArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let mut cursor = args.cursor.clone();
    loop {
        let page = page(&client, &args, cursor.as_deref()).await?;
        match (args.json, args.all) {
            (true, false) => output.json(&page)?,
            (true, true) => page.rows.iter().try_for_each(|row| output.json(row))?,
            (false, _) => show(&page, output)?,
        }
        output.flush()?;
        match page.next {
            Some(next) if args.all => cursor = Some(next),
            Some(next) if !args.json => {
                eprintln!("there is more: --cursor {}", printable(&next));
                return Ok(());
            }
            _ => return Ok(()),
        }
    }
}

async fn page(client: &Client, args: &QueryArgs, cursor: Option<&str>) -> Result<RowsPage, CliError> {
    let limit = args.limit.map(|limit| limit.to_string());
    let mut query: Vec<(&str, &str)> = args.conditions.iter().map(|text| ("where", text.as_str())).collect();
    query.extend(args.order.iter().map(|text| ("order", text.as_str())));
    query.extend(limit.as_deref().map(|limit| ("limit", limit)));
    query.extend(cursor.map(|cursor| ("cursor", cursor)));
    client.get(&["v1", "tables", &args.table], &query).await
}

fn show(page: &RowsPage, output: &mut Output) -> Result<(), CliError> {
    let columns: Vec<String> = page
        .rows
        .first()
        .map_or_else(Vec::new, |row| row.values.0.iter().map(|(name, _)| printable(name)).collect());
    let numeric = |name: &str| {
        let mut values =
            page.rows.iter().filter_map(|row| row.values.get(name)).filter(|text| *text != "null").peekable();
        values.peek().is_some()
            && values.all(|text| text.starts_with(|c: char| c == '-' || c.is_ascii_digit()))
    };
    let mut head = vec![("key", Align::Left)];
    head.extend(
        columns.iter().map(|name| (name.as_str(), if numeric(name) { Align::Right } else { Align::Left })),
    );
    head.push(("version", Align::Right));
    let rows: Vec<Vec<String>> = page
        .rows
        .iter()
        .map(|row| {
            let mut cells = vec![cell(&row.key)];
            cells.extend(columns.iter().map(|name| row.values.get(name).map_or_else(String::new, json_cell)));
            cells.push(row.version.as_deref().map_or_else(String::new, |v| json_cell(v.get())));
            cells
        })
        .collect();
    output.table(&head, &rows)
}

/// JSON for a terminal: text without its quotes, null as nothing.
fn json_cell(json: &str) -> String {
    match serde_json::from_str::<String>(json) {
        Ok(text) => cell(&text),
        Err(_) if json == "null" => String::new(),
        Err(_) => cell(json),
    }
}

fn cell(text: &str) -> String {
    let text = printable(text);
    if text.chars().count() <= CELL_CHARS_MAX {
        return text;
    }
    text.chars().take(CELL_CHARS_MAX - 1).chain(['…']).collect()
}

impl Fields {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value.get())
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}
