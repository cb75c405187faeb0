//! What is asked, as the cache and the upstreams know it.

use std::fmt;

use hickory_proto::op::{DnsRequest, DnsRequestOptions, Message, Query};
use hickory_proto::rr::{DNSClass, Name, RecordType};

/// A question of the Internet's class. Two whose names differ in upper and lower case only are the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    name: Name,
    kind: RecordType,
    /// The client wants signatures (RFC 4035's DO bit), or answers whose signatures are wrong, too (its CD bit): both change the answer.
    dnssec_ok: bool,
    checking_disabled: bool,
}

impl Question {
    /// The one question of a client's query; `None` for none, several, or another class.
    pub fn of(query: &Message) -> Option<Self> {
        let [asked] = query.queries.as_slice() else { return None };
        (asked.query_class() == DNSClass::IN).then(|| Self {
            name: asked.name().to_lowercase(),
            kind: asked.query_type(),
            dnssec_ok: query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
            checking_disabled: query.metadata.checking_disabled,
        })
    }

    pub fn kind(&self) -> RecordType {
        self.kind
    }

    /// The name as people write it, without the final dot.
    pub fn host(&self) -> String {
        let name = self.name.to_ascii();
        name.strip_suffix('.').filter(|host| !host.is_empty()).unwrap_or(&name).to_owned()
    }

    pub fn query(&self) -> Query {
        Query::query(self.name.clone(), self.kind)
    }

    /// The query that an upstream gets, with a random id.
    pub fn request(&self) -> DnsRequest {
        let mut options = DnsRequestOptions::default();
        options.edns_set_dnssec_ok = self.dnssec_ok;
        let mut request = DnsRequest::from_query(self.query(), options);
        request.metadata.checking_disabled = self.checking_disabled;
        request
    }

    /// What this question's answer takes in memory besides the answer, bytes.
    pub fn size(&self) -> usize {
        self.name.len() + size_of::<Self>()
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.host(), self.kind)
    }
}
