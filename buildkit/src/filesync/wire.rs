//! Packets of fsutil's protocol.

use crate::{
    proto::fsutil::types::{Packet, Stat, packet::PacketType},
    source::{Entry, EntryKind},
};
use bytes::Bytes;

/// Bits of Go's `os.FileMode`, which is what fsutil sends.
const GO_DIRECTORY: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_STICKY: u32 = 1 << 20;

fn packet(kind: PacketType) -> Packet {
    Packet { r#type: kind.into(), ..Packet::default() }
}

/// An entry. Owners are left at root, as `buildctl` does.
pub(super) fn stat(entry: Entry) -> Packet {
    let mode = go_mode(entry.kind, entry.mode);
    let stat = Stat {
        path: entry.path.into(),
        mode,
        size: if entry.kind == EntryKind::File { i64::try_from(entry.size).unwrap_or(i64::MAX) } else { 0 },
        mod_time: entry.mtime_ns,
        linkname: entry.link,
        ..Stat::default()
    };
    Packet { stat: Some(stat), ..packet(PacketType::PacketStat) }
}

/// The listing is complete.
pub(super) fn end_of_stats() -> Packet {
    packet(PacketType::PacketStat)
}

/// A piece of a file's content; an empty one ends the file.
pub(super) fn data(id: u32, data: Bytes) -> Packet {
    Packet { id, data, ..packet(PacketType::PacketData) }
}

pub(super) fn fin() -> Packet {
    packet(PacketType::PacketFin)
}

pub(super) fn error(message: &str) -> Packet {
    Packet { data: Bytes::copy_from_slice(message.as_bytes()), ..packet(PacketType::PacketErr) }
}

fn go_mode(kind: EntryKind, mode: u32) -> u32 {
    let kind = match kind {
        EntryKind::Directory => GO_DIRECTORY,
        EntryKind::Symlink => GO_SYMLINK,
        EntryKind::File => 0,
    };
    let special = [(0o4000, GO_SETUID), (0o2000, GO_SETGID), (0o1000, GO_STICKY)];
    special.into_iter().filter(|(unix, _)| mode & unix != 0).fold(kind | mode & 0o777, |bits, (_, go)| bits | go)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_go() {
        // As printed by Go for files with these modes.
        assert_eq!(go_mode(EntryKind::File, 0o644), 0o644);
        assert_eq!(go_mode(EntryKind::Directory, 0o755), 0x8000_01ed);
        assert_eq!(go_mode(EntryKind::Symlink, 0o777), 0x0800_01ff);
        assert_eq!(go_mode(EntryKind::File, 0o4755), 0x0080_01ed);
        assert_eq!(go_mode(EntryKind::File, 0o2755), 0x0040_01ed);
        assert_eq!(go_mode(EntryKind::Directory, 0o1777), 0x8010_01ff);
    }

    #[test]
    fn names_travel_as_bytes() {
        use prost::Message as _;
        let name = b"caf\xe9".to_vec();
        let entry =
            Entry { path: name.clone(), kind: EntryKind::File, mode: 0o600, size: 3, mtime_ns: 7, link: Vec::new() };
        let decoded = Packet::decode(stat(entry).encode_to_vec().as_slice()).unwrap();
        assert_eq!(decoded.stat.unwrap().path, name);
    }
}
