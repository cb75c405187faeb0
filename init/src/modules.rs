//! Kernel modules: a flat list of files in the order in which they must be loaded, made with the image.

use std::path::Path;

use crate::{console, sys};

/// Loads what the list names, one path a line. A module that cannot be loaded is said and left out: what needs it will say more.
pub fn load(list: &str) {
    let text = std::fs::read_to_string(list).unwrap_or_else(|error| {
        console::say(&format!("cannot read {list}: {error}"));
        String::new()
    });
    for file in text.lines().filter(|line| !line.is_empty()) {
        if let Err(error) = sys::load_module(Path::new(file)) {
            console::say(&format!("module {file}: {error}"));
        }
    }
}
