//! The layers of the configuration, and which of them a value came from.

use std::borrow::Cow;
use std::path::Path;

use figment::value::{Dict, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;

use super::{Config, ConfigError, GrpcSourceConfig};
use crate::plugins::PluginSettings;

/// How environment variables of settings begin: `MILLRACE_STORE__RETENTION_EVENTS`.
const PREFIX: &str = "MILLRACE_";
/// What separates section and key there; one underscore is part of a name.
const SEPARATOR: &str = "__";
/// What a secret is printed as.
const MASK: &str = "********";

/// Collects layers, weakest first; [`Layers::resolve`] puts them together.
#[derive(Debug, Default)]
pub struct Layers(Vec<Layer>);

/// A configuration and the source of each of its values.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub config: Config,
    /// Ordered by key. Secrets are masked.
    pub settings: Vec<Setting>,
}

/// One value as it counts, and where it was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub key: String,
    /// As it would be written in a config file; empty where there is none.
    pub value: String,
    /// `default`, `file millrace.toml`, `env MILLRACE_…` or `flag --…`.
    pub source: String,
}

#[derive(Clone, Debug)]
struct Layer {
    origin: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

impl Layers {
    /// The defaults.
    pub fn new() -> Self {
        Self(vec![Layer { origin: "default".into(), values: dict_of(&Config::default()) }])
    }

    /// Adds a TOML file.
    pub fn file(&mut self, path: &Path) -> Result<&mut Self, ConfigError> {
        let unreadable = |detail: String| ConfigError::Unreadable { path: path.into(), detail };
        let text = std::fs::read_to_string(path).map_err(|e| unreadable(e.to_string()))?;
        let values = toml::from_str(&text).map_err(|e| unreadable(e.to_string().trim_end().to_owned()))?;
        self.0.push(Layer { origin: format!("file {}", path.display()), values });
        Ok(self)
    }

    /// Adds environment variables. Those without `__` are not settings (`MILLRACE_URL`).
    pub fn environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) -> &mut Self {
        for (name, text) in variables {
            let Some(path) = name.strip_prefix(PREFIX).filter(|path| path.contains(SEPARATOR)) else {
                continue;
            };
            let mut path: Vec<&str> = path.split(SEPARATOR).collect();
            // What a plugin finds in its environment is written as it is there.
            let below = matches!(path[..], [section, _, kind, _]
                if section.eq_ignore_ascii_case("plugins") && kind.eq_ignore_ascii_case("env"));
            let variable = if below { path.pop() } else { None };
            let path: Vec<String> =
                path.into_iter().map(str::to_ascii_lowercase).chain(variable.map(str::to_owned)).collect();
            let values = nested(&path, parse_value(&text));
            self.0.push(Layer { origin: format!("env {name}"), values });
        }
        self
    }

    /// Adds one value that a flag gave.
    pub fn flag(&mut self, flag: &str, key: &str, value: impl Into<Value>) -> &mut Self {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        self.0.push(Layer { origin: format!("flag {flag}"), values: nested(&path, value.into()) });
        self
    }

    /// Adds what `--set KEY=VALUE` said; the value is read as in an environment variable.
    pub fn assignment(&mut self, text: &str) -> Result<&mut Self, ConfigError> {
        let (key, value) = text
            .split_once('=')
            .filter(|(key, _)| !key.trim().is_empty())
            .ok_or_else(|| ConfigError::NotAnAssignment { text: text.into() })?;
        Ok(self.flag("--set", key.trim(), parse_value(value)))
    }

    /// Puts the layers together and checks the result.
    pub fn resolve(&self) -> Result<Resolved, ConfigError> {
        let known = dict_of(&Config::default());
        let plugin = dict_of(&PluginSettings::default());
        for layer in &self.0 {
            check_keys(layer, &known, &plugin)?;
        }
        let figment = self.0.iter().fold(Figment::new(), |all, layer| all.merge(layer));
        let config: Config = figment.extract().map_err(|error| self.invalid(&error))?;
        config.check().map_err(|(key, detail)| ConfigError::Invalid {
            origin: self.origin_of(key.split(['.', '[']).map(str::to_owned)).to_owned(),
            key,
            detail,
        })?;
        let mut settings = Vec::new();
        self.list(&mut Vec::new(), &dict_of(&config), &mut settings);
        settings.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Resolved { config, settings })
    }

    /// The strongest layer that says something at a path, or above it.
    fn origin_of(&self, path: impl Iterator<Item = String>) -> &str {
        let path: Vec<String> = path.collect();
        let holds = |layer: &&Layer| {
            let mut at = Some(&layer.values);
            for part in &path {
                match at.and_then(|dict| dict.get(part)) {
                    Some(Value::Dict(_, inner)) => at = Some(inner),
                    Some(_) => return true,
                    None => return false,
                }
            }
            true
        };
        self.0.iter().rev().find(holds).map_or("default", |layer| &layer.origin)
    }

    fn invalid(&self, error: &figment::Error) -> ConfigError {
        let key = error.path.join(".");
        let origin = error.metadata.as_ref().map_or_else(
            || self.origin_of(error.path.iter().cloned()).to_owned(),
            |metadata| metadata.name.to_string(),
        );
        ConfigError::Invalid { key, origin, detail: error.kind.to_string() }
    }

    fn list(&self, path: &mut Vec<String>, values: &Dict, settings: &mut Vec<Setting>) {
        for (name, value) in values {
            path.push(name.clone());
            match value {
                Value::Dict(_, inner) => self.list(path, inner, settings),
                value => settings.push(Setting {
                    key: path.join("."),
                    value: written(value, path),
                    source: self.origin_of(path.iter().cloned()).to_owned(),
                }),
            }
            path.pop();
        }
    }
}

/// Refuses a key that no part of [`Config`] has. What a plugin's `config` holds is the plugin's business.
fn check_keys(layer: &Layer, known: &Dict, plugin: &Dict) -> Result<(), ConfigError> {
    for (section, value) in &layer.values {
        let Some(expected) = known.get(section) else {
            return Err(unknown(layer, "", section, known));
        };
        let Value::Dict(_, values) = value else { continue };
        if section != "plugins" {
            let Value::Dict(_, expected) = expected else { continue };
            check_names(layer, section, values, expected)?;
            if section == "source"
                && let Some(Value::Dict(_, values)) = values.get("grpc")
            {
                check_names(layer, "source.grpc", values, &dict_of(&GrpcSourceConfig::default()))?;
            }
            continue;
        }
        for (name, settings) in values {
            if let Value::Dict(_, settings) = settings {
                check_names(layer, &format!("plugins.{name}"), settings, plugin)?;
            }
        }
    }
    Ok(())
}

fn check_names(layer: &Layer, section: &str, values: &Dict, expected: &Dict) -> Result<(), ConfigError> {
    match values.keys().find(|name| !expected.contains_key(*name)) {
        Some(name) => Err(unknown(layer, section, name, expected)),
        None => Ok(()),
    }
}

fn unknown(layer: &Layer, section: &str, name: &str, expected: &Dict) -> ConfigError {
    let full = |name: &str| if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
    let nearest = expected
        .keys()
        .map(|key| (edits(name, key), key))
        .filter(|(edits, key)| *edits <= key.len().max(name.len()) / 2)
        .min()
        .map(|(_, key)| full(key));
    ConfigError::UnknownKey { key: full(name), origin: layer.origin.clone(), nearest }
}

/// How many letters must be added, removed or changed to make one word of the other.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A value as a config file would say it. Tokens are masked: this is for eyes and bug reports.
fn written(value: &Value, path: &[String]) -> String {
    let environment = path.len() > 3 && path[0] == "plugins" && path[2] == "env";
    let secret = environment
        || path.last().is_some_and(|name| ["token", "api_key", "bearer_token"].contains(&name.as_str()))
        || path.iter().any(|name| name == "otlp_headers");
    match value {
        Value::Empty(..) => String::new(),
        Value::String(..) if secret => format!("\"{MASK}\""),
        Value::String(_, text) => format!("{:?}", without_credentials(text)),
        Value::Array(_, items) => {
            let items: Vec<String> = items.iter().map(|item| written(item, path)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Dict(_, fields) if path.iter().any(|name| name == "otlp_headers") => {
            let fields: Vec<String> = fields.keys().map(|name| format!("{name} = \"{MASK}\"")).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Value::Dict(_, fields) => {
            let fields: Vec<String> = fields
                .iter()
                .filter(|(_, value)| !matches!(value, Value::Empty(..)))
                .map(|(name, value)| format!("{name} = {}", written(value, std::slice::from_ref(name))))
                .collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Value::Bool(_, value) => value.to_string(),
        Value::Char(_, value) => format!("\"{value}\""),
        Value::Num(_, number) => match (number.to_u128(), number.to_i128(), number.to_f64()) {
            (Some(n), _, _) => n.to_string(),
            (_, Some(n), _) => n.to_string(),
            (_, _, Some(n)) => n.to_string(),
            _ => String::new(),
        },
    }
}

/// An address without who uses it: `redis://user:password@host` names a secret.
fn without_credentials(text: &str) -> Cow<'_, str> {
    match text.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1))) {
        Some((scheme, place)) => format!("{scheme}://{MASK}@{place}").into(),
        None => text.into(),
    }
}

fn nested(path: &[String], value: Value) -> Dict {
    match path {
        [] => Dict::new(),
        [last] => Dict::from([(last.clone(), value)]),
        [first, rest @ ..] => Dict::from([(first.clone(), Value::Dict(Tag::Default, nested(rest, value)))]),
    }
}

/// `7`, `true`, `[1, 2]`, `{a=1}` and `"text"` are what they look like; anything else is text.
fn parse_value(text: &str) -> Value {
    match text.parse::<Value>() {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

fn dict_of<T: Serialize>(value: &T) -> Dict {
    match Value::serialize(value) {
        Ok(Value::Dict(_, dict)) => dict,
        Ok(_) | Err(_) => unreachable!("settings are structs of plain values, which a dictionary can hold"),
    }
}
