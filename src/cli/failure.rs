//! How a command fails: a class, which is the exit code, and what its user reads.

use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;

use clap::CommandFactory as _;
use serde_json::{Value, json};
use workflows::contract::{BuildError, FailureClass};

use super::{Cli, Output, watch};
use crate::settings::SettingsError;
use crate::terminal::{self, OutputError};

/// What failed, on what, why, what to do next.
#[derive(Debug)]
pub struct Failure {
    pub class: FailureClass,
    pub message: String,
    /// What to do about it, if that is known.
    pub hint: Option<String>,
    /// What `--output json` prints of it, where that is more than the error.
    pub object: Option<Box<Value>>,
}

impl Failure {
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), hint: None, object: None }
    }

    /// Found before anything was started.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(FailureClass::Usage, message)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn object(mut self, object: Value) -> Self {
        self.object = Some(Box::new(object));
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        Self::new(FailureClass::Transient, chain(&error))
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::usage(chain(&error))
    }
}

/// How a command's failure is reported: a sentence on standard error, with `--output json` an object on
/// standard output, and the exit code of its class.
#[derive(Debug, Clone, Copy)]
pub struct FailureReport {
    pub output: Output,
    /// Whether the object is that of a build, with all its keys.
    pub of_a_build: bool,
}

impl FailureReport {
    /// That of a command line that clap does not accept.
    fn of_line(line: &[OsString]) -> Self {
        let words = || line.iter().skip(1).map(|word| word.to_string_lossy());
        let json = words().zip(words().skip(1)).any(|(flag, value)| flag == "--output" && value == "json");
        let output = if json || words().any(|word| word == "--output=json") { Output::Json } else { Output::Text };
        let command = Cli::command();
        let named = words().find(|word| command.find_subcommand(word.as_ref()).is_some());
        Self { output, of_a_build: named.is_some_and(|name| name == "up") }
    }

    /// Reports a failure.
    pub fn fail(self, failure: &Failure) -> ExitCode {
        terminal::note(format_args!("kiln: {failure}"));
        self.print_object(failure)
    }

    fn print_object(self, failure: &Failure) -> ExitCode {
        if self.output == Output::Json
            && let Err(error) = terminal::print_json(&self.object_of(failure))
        {
            terminal::note(format_args!("kiln: {}", chain(&error)));
        }
        ExitCode::from(failure.class.exit_code())
    }

    fn object_of(self, failure: &Failure) -> Value {
        let error = || BuildError::new(failure.class, failure.message.clone());
        match &failure.object {
            Some(object) => (**object).clone(),
            None if self.of_a_build => watch::never_started(error()),
            None => json!({"error": error()}),
        }
    }
}

/// Ends a command line that is no command as clap does: help and versions go to standard output, mistakes are reported.
pub fn not_a_command(error: &clap::Error, line: &[OsString]) -> ExitCode {
    let text = error.render().ansi().to_string();
    if error.use_stderr() {
        terminal::note(text.trim_end());
        return FailureReport::of_line(line).print_object(&Failure::usage(first_paragraph(error)));
    }
    match terminal::print(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => FailureReport::of_line(line).fail(&error.into()),
    }
}

/// What is wrong, without the usage that follows it.
fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    text.split("\n\n").next().unwrap_or(text).trim_end().to_owned()
}

/// An error with its causes, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(error.to_string().trim_end());
        cause = error.source();
    }
    text
}

/// What went wrong with a file, without the number.
pub fn io_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
