//! Reading what an earlier version saved.

use serde::Deserialize;

use crate::Saved;

impl Saved {
    /// Reads a state that `snapshot` wrote as JSON. Refuses another content type, with both named.
    pub fn json<'a, T: Deserialize<'a>>(&'a self, content_type: &str) -> Result<T, String> {
        if self.content_type != content_type {
            return Err(format!(
                "the saved state has content type `{}`, this version reads `{content_type}`",
                self.content_type
            ));
        }
        read(&self.state)
    }

    /// Reads a state of one of several content types, each in its own way: what a version does that takes
    /// over from older ones.
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use millrace_guest::Saved;
    ///
    /// const V1: &str = "application/vnd.example.counts.v1+json";
    /// const V2: &str = "application/vnd.example.counts.v2+json";
    ///
    /// #[derive(serde::Deserialize, Default)]
    /// struct Counted { events: u64, last_type: Option<String> }
    ///
    /// fn counts(saved: Option<Saved>) -> Result<BTreeMap<String, Counted>, String> {
    ///     let Some(saved) = saved else { return Ok(BTreeMap::new()) };
    ///     saved
    ///         .migrate()
    ///         .json(V2, |counts| counts)
    ///         .json(V1, |old: BTreeMap<String, u64>| {
    ///             old.into_iter().map(|(key, events)| (key, Counted { events, last_type: None })).collect()
    ///         })
    ///         .finish()
    /// }
    ///
    /// let old = Saved { content_type: V1.into(), state: br#"{"a":7}"#.to_vec() };
    /// assert_eq!(counts(Some(old)).unwrap()["a"].events, 7);
    /// let newer = Saved { content_type: "application/vnd.example.counts.v3+json".into(), state: vec![] };
    /// assert!(counts(Some(newer)).err().unwrap().contains("v3+json"));
    /// ```
    pub fn migrate<T>(&self) -> Migration<'_, T> {
        Migration { saved: self, known: Vec::new(), read: None }
    }
}

/// Finds the way to read a saved state by its content type. [`Saved::migrate`] begins one.
#[derive(Debug)]
#[must_use = "`finish` gives the state"]
pub struct Migration<'a, T> {
    saved: &'a Saved,
    known: Vec<&'static str>,
    read: Option<Result<T, String>>,
}

impl<'a, T> Migration<'a, T> {
    /// A content type that is JSON of `S`, and how that becomes today's state.
    pub fn json<S: Deserialize<'a>>(self, content_type: &'static str, into: impl FnOnce(S) -> T) -> Self {
        self.bytes(content_type, |state| read(state).map(into))
    }

    /// A content type with bytes of its own. An error refuses the state.
    pub fn bytes(
        mut self,
        content_type: &'static str,
        read: impl FnOnce(&'a [u8]) -> Result<T, String>,
    ) -> Self {
        if self.saved.content_type == content_type {
            self.read.get_or_insert_with(|| read(&self.saved.state));
        }
        self.known.push(content_type);
        self
    }

    /// The state; a refusal, which names what this version reads, where none of the content types is it.
    pub fn finish(self) -> Result<T, String> {
        self.read.unwrap_or_else(|| {
            Err(format!(
                "the saved state has content type `{}`, this version reads `{}`",
                self.saved.content_type,
                self.known.join("`, `")
            ))
        })
    }
}

fn read<'a, T: Deserialize<'a>>(state: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(state).map_err(|e| format!("the saved state cannot be read: {e}"))
}
