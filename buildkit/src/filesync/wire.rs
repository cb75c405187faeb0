//! Packets of fsutil's protocol, as gRPC messages.

use crate::{
    proto::fsutil::types::{Packet, Stat, packet::PacketType},
    source::{Entry, EntryKind},
};
use bytes::{BufMut, Bytes};
use prost::Message as _;

/// What gRPC puts before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// The key of a packet's last field, its data: number 4, with a length.
const DATA_KEY: u8 = 4 << 3 | 2;
/// The most that comes before the content in a message with content: prefix, type, id, the data's key and length.
pub(super) const DATA_HEADER: usize = PREFIX + 2 + 6 + 1 + 4;

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

/// The end of a file's content.
pub(super) fn end_of_file(id: u32) -> Packet {
    Packet { id, ..packet(PacketType::PacketData) }
}

/// The size of a packet as a message.
pub(super) fn size(packet: &Packet) -> usize {
    PREFIX + packet.encoded_len()
}

/// Writes a packet as a message to the start of `into`, which has room for it.
pub(super) fn write(packet: &Packet, mut into: &mut [u8]) {
    into.put_u8(0);
    // Far below 4 GiB: the receiver takes no more than 16 MiB.
    into.put_u32(packet.encoded_len() as u32);
    let written = packet.encode(&mut into);
    debug_assert!(written.is_ok(), "{written:?}");
}

/// How far into its message the content of a data packet begins.
pub(super) fn content_at(id: u32, content: usize) -> usize {
    size(&end_of_file(id)) + 1 + prost::length_delimiter_len(content)
}

/// Makes a data packet's message of what was read: `content` bytes that begin at `at` in `message`, where `at` leaves
/// room for what comes before them. Returns the message's size.
///
/// Content is read to where it is sent from: this is why it is not encoded as the other packets are.
pub(super) fn write_around(id: u32, message: &mut [u8], at: usize, content: usize) -> usize {
    let begin = content_at(id, content);
    // Less was read than was hoped for, and its length has fewer digits.
    if begin < at {
        message.copy_within(at..at + content, begin);
    }
    let mut into = &mut message[..begin];
    into.put_u8(0);
    into.put_u32((begin - PREFIX + content) as u32);
    let mut written = end_of_file(id).encode(&mut into);
    into.put_u8(DATA_KEY);
    written = written.and(prost::encode_length_delimiter(content, &mut into));
    debug_assert!(written.is_ok(), "{written:?}");
    begin + content
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

    /// The packet in a message.
    fn read(message: &[u8]) -> Packet {
        assert_eq!(message[0], 0);
        assert_eq!(message[1..PREFIX], u32::to_be_bytes((message.len() - PREFIX) as u32));
        Packet::decode(&message[PREFIX..]).unwrap()
    }

    #[test]
    fn a_message_is_prefix_and_packet() {
        let packet = error("no");
        let mut message = vec![9; size(&packet)];
        write(&packet, &mut message);
        assert_eq!(read(&message), packet);
    }

    #[test]
    fn content_becomes_a_data_packet_where_it_lies() {
        for (id, content, hoped) in
            [(0, 1, 1), (1, 127, 128), (300, 128, 128), (7, 100, 20_000), (u32::MAX, 16_384, 16_385)]
        {
            let at = content_at(id, hoped);
            let mut message = vec![9; DATA_HEADER + hoped];
            let data: Vec<u8> = (0..content).map(|n| n as u8).collect();
            message[at..at + content].copy_from_slice(&data);
            let size = write_around(id, &mut message, at, content);
            assert!(size <= DATA_HEADER + content);
            let expected = Packet { id, data: data.into(), ..packet(PacketType::PacketData) };
            assert_eq!(read(&message[..size]), expected, "{id} {content} {hoped}");
            assert_eq!(size, super::size(&expected));
        }
    }

    #[test]
    fn names_travel_as_bytes() {
        let name = b"caf\xe9".to_vec();
        let entry =
            Entry { path: name.clone(), kind: EntryKind::File, mode: 0o600, size: 3, mtime_ns: 7, link: Vec::new() };
        let decoded = Packet::decode(stat(entry).encode_to_vec().as_slice()).unwrap();
        assert_eq!(decoded.stat.unwrap().path, name);
    }
}
