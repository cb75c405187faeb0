//! That a name has no answer, and what each upstream did about it.

use std::fmt;
use std::net::SocketAddr;

use hickory_proto::op::ResponseCode;

/// A question that no upstream has an answer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    /// The name, without the final dot.
    pub host: String,
    pub tried: Vec<(SocketAddr, Trouble)>,
}

impl Unresolved {
    /// Whether not one of the upstreams said anything.
    pub fn is_silence(&self) -> bool {
        self.tried.iter().all(|(_, trouble)| matches!(trouble, Trouble::Silent | Trouble::Unreachable(_)))
    }

    /// What each of them did, without the name: to go on a sentence with.
    pub fn servers(&self) -> Servers<'_> {
        Servers(&self.tried)
    }
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} could not be resolved{}", self.host, self.servers())
    }
}

impl std::error::Error for Unresolved {}

/// See [`Unresolved::servers`].
pub struct Servers<'a>(&'a [(SocketAddr, Trouble)]);

impl fmt::Display for Servers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = ": name server";
        for (address, trouble) in self.0 {
            write!(f, "{before} {address} {trouble}")?;
            before = ",";
        }
        Ok(())
    }
}

/// Why one upstream is of no help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    Silent,
    Unreachable(String),
    /// It answered that it cannot tell.
    Said(ResponseCode),
    /// Its answer makes no sense.
    Garbled(String),
}

impl Trouble {
    /// Whether asking it again at once may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Silent)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("did not answer"),
            Self::Unreachable(why) => write!(f, "cannot be reached ({why})"),
            Self::Said(code) => write!(f, "answered {code}"),
            Self::Garbled(why) => write!(f, "gave an answer that cannot be used ({why})"),
        }
    }
}
