//! What a command ends with: one sentence, a next step, and an exit code.

use std::fmt;
use std::io;
use std::process::ExitCode;

use crate::config::ConfigError;

/// Exit codes. They are part of the interface; `millrace --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Fine = 0,
    Failure = 1,
    Usage = 2,
    Unreachable = 3,
    Refused = 4,
    Denied = 5,
    Config = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command ended without doing what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    exit: Exit,
    sentence: String,
    next_step: String,
}

impl CliError {
    pub fn new(exit: Exit, sentence: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { exit, sentence: sentence.into(), next_step: next_step.into() }
    }

    pub fn failed(sentence: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new(Exit::Failure, sentence, next_step)
    }

    pub fn usage(sentence: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new(Exit::Usage, sentence, next_step)
    }

    pub fn exit(&self) -> Exit {
        self.exit
    }

    pub fn sentence(&self) -> &str {
        &self.sentence
    }

    pub fn next_step(&self) -> &str {
        &self.next_step
    }

    /// The same, with another next step.
    #[must_use]
    pub fn with_next_step(mut self, next_step: impl Into<String>) -> Self {
        self.next_step = next_step.into();
        self
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.sentence)?;
        if !self.next_step.is_empty() {
            write!(f, "\n  next: {}", self.next_step)?;
        }
        Ok(())
    }
}

impl std::error::Error for CliError {}

impl From<io::Error> for CliError {
    /// Of writing to standard output. A reader that has seen enough (`| head`) is no failure.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Fine, "", ""),
            _ => Self::failed(
                format!("standard output cannot be written: {error}"),
                "look at where the output goes; a full disk is the usual reason",
            ),
        }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        let next_step = match &error {
            ConfigError::UnknownKey { nearest: Some(nearest), .. } => {
                format!("write `{nearest}`, or see `millrace config` for every setting")
            }
            ConfigError::UnknownKey { .. } => "see `millrace config` for every setting".into(),
            ConfigError::Invalid { key, .. } if key == "serve.bind" => {
                "add a token under [[auth.tokens]] or an issuer under [auth.jwt], or listen on 127.0.0.1"
                    .into()
            }
            ConfigError::Invalid { key, .. } => {
                format!("change `{key}` there; `millrace config --defaults` shows what it is by default")
            }
            ConfigError::Unreadable { .. } => "correct the file, or name another with --config".into(),
            ConfigError::NotAnAssignment { .. } => "see `millrace config` for every setting".into(),
        };
        Self::new(Exit::Config, error.to_string(), next_step)
    }
}
