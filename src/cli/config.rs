//! `kiln config`: the settings as this machine resolves them.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use super::{ClientArgs, Failure, Output};
use crate::settings::{Layers, Origin, Resolved};

/// Print the resolved settings, each with the place it comes from; secrets are hidden
///
/// Later places win: defaults, the settings file, KILN_* variables, flags. The variable of cell.slots is KILN_CELL_SLOTS.
#[derive(Debug, Args)]
#[command(display_order = 40)]
pub struct ConfigArgs {
    #[arg(long, value_enum, default_value = "text")]
    pub output: Output,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(args: &ConfigArgs, resolved: &Resolved) -> Result<ExitCode, Failure> {
    args.output.print(|| as_text(&resolved.layers), || as_json(resolved))?;
    Ok(ExitCode::SUCCESS)
}

/// TOML with the origins as comments: it can be kept as a `kiln.toml` once the secrets are filled in.
fn as_text(layers: &Layers) -> String {
    let mut text = String::new();
    let mut current = "";
    for (key, value, origin) in layers.shown() {
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        if section != current {
            let _ = writeln!(text, "{}[{section}]", if current.is_empty() { "" } else { "\n" });
            current = section;
        }
        let line = format!("{name} = {value}");
        let _ = match origin {
            Origin::Default => writeln!(text, "{line}"),
            other => writeln!(text, "{line:<50} # {other}"),
        };
    }
    text
}

fn as_json(resolved: &Resolved) -> Value {
    let settings: Map<String, Value> = resolved
        .layers
        .shown()
        .map(|(key, value, origin)| (key.to_owned(), json!({"value": value, "origin": origin.to_string()})))
        .collect();
    json!({"file": resolved.file, "settings": settings})
}
