//! What a host keeps of one of its cells (`host.json` in the cell's directory): what is wanted there, and its operations with their
//! answers, so that none is done twice.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use workflows::contract::{HostCell, HostClone};

use super::HostError;
use crate::durable;

const FILE: &str = "host.json";
/// Operations remembered. An operation is repeated by the retries of one activity, so seconds or minutes after the first time.
const REMEMBERED: usize = 64;

/// The kinds of operation that change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Start,
    Stop,
    Clone,
}

impl What {
    fn in_words(self) -> &'static str {
        match self {
            Self::Start => "a start",
            Self::Stop => "a stop",
            Self::Clone => "a clone",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Operation {
    id: String,
    what: What,
    answer: Answer,
}

/// What an operation was answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    Clone(HostClone),
    Cell(HostCell),
}

/// The record of a cell. A cell nobody has ordered anything for is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Whether the cell is to run.
    pub wanted: bool,
    pub image: Option<String>,
    /// How often the cell was started.
    pub generation: u64,
    /// When it was last started, milliseconds since 1970.
    pub started_ms: Option<i64>,
    /// The last ones, oldest first.
    operations: Vec<Operation>,
}

impl Default for Record {
    fn default() -> Self {
        Self { wanted: true, image: None, generation: 0, started_ms: None, operations: Vec::new() }
    }
}

impl Record {
    /// Notes of a new cell what it is to run.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(dir: &Path, image: Option<&str>) -> io::Result<()> {
        Self { image: image.map(str::to_owned), ..Self::default() }.put(&dir.join(FILE))
    }

    /// What the directory's file says; the default when there is none.
    ///
    /// # Errors
    /// It cannot be read or is something else.
    pub fn read(dir: &Path) -> Result<Self, HostError> {
        let path = dir.join(FILE);
        let read = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read.and_then(|text| Ok(serde_json::from_slice(&text)?)),
        };
        read.map_err(|source| HostError::Record { path, source })
    }

    /// Writes the file, whole or not at all, and to the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), HostError> {
        let path = dir.join(FILE);
        self.put(&path).map_err(|source| HostError::Record { path, source })
    }

    fn put(&self, path: &Path) -> io::Result<()> {
        durable::replace(path, &serde_json::to_vec_pretty(self)?)
    }

    /// The first answer to an operation that was done before.
    ///
    /// # Errors
    /// The id was that of another kind of operation.
    pub fn answer(&self, id: &str, what: What) -> Result<Option<Answer>, HostError> {
        match self.operations.iter().find(|operation| operation.id == id) {
            None => Ok(None),
            Some(first) if first.what == what => Ok(Some(first.answer.clone())),
            Some(first) => Err(HostError::Reused { operation: id.to_owned(), first: first.what.in_words() }),
        }
    }

    /// Notes that an operation is done.
    pub fn remember(&mut self, id: &str, what: What, answer: Answer) {
        let spare = (self.operations.len() + 1).saturating_sub(REMEMBERED);
        self.operations.drain(..spare);
        self.operations.push(Operation { id: id.to_owned(), what, answer });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(generation: u64) -> Answer {
        let (cell, pid) = ("c1".parse().unwrap(), Some(7));
        Answer::Cell(HostCell { cell, running: true, pid, started_ms: None, image: None, generation })
    }

    fn clone() -> Answer {
        Answer::Clone(HostClone { clone: "c2".parse().unwrap(), held_still_ms: None, took_ms: 8 })
    }

    #[test]
    fn a_repeated_operation_gets_its_first_answer() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::read(dir.path()).unwrap();
        assert!(record.wanted, "a cell nobody ordered anything for is to run");
        record.remember("a", What::Start, cell(1));
        record.remember("b", What::Stop, cell(2));
        record.remember("d", What::Clone, clone());
        record.write(dir.path()).unwrap();
        let again = Record::read(dir.path()).unwrap();
        assert_eq!(again, record);
        assert_eq!(again.answer("a", What::Start).unwrap(), Some(cell(1)));
        assert_eq!(again.answer("d", What::Clone).unwrap(), Some(clone()));
        assert_eq!(again.answer("c", What::Start).unwrap(), None);
        let reused = again.answer("b", What::Start).unwrap_err().to_string();
        assert_eq!(reused, "operation \"b\" was a stop before; an id names one operation");
    }

    #[test]
    fn the_record_stays_small() {
        let mut record = Record::default();
        (0..1000).for_each(|n| record.remember(&n.to_string(), What::Start, cell(n)));
        assert_eq!(record.operations.len(), REMEMBERED);
        assert_eq!(record.answer("999", What::Start).unwrap(), Some(cell(999)));
        assert_eq!(record.answer("1", What::Start).unwrap(), None);
    }

    #[test]
    fn a_file_that_is_no_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        let error = Record::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("host.json of the cell cannot be used"), "{error}");
    }
}
