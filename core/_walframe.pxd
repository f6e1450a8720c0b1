# cython: language_level=3
"""One record of etcd's write-ahead log, inline: frame, walpb.Record, the messages it carries.

A frame is an 8-byte little-endian word (low 56 bits: record bytes; top byte: 0, or 0x80 | pad
bytes), the record, and zeros up to a multiple of 8. Records are written as etcd up to 3.6 writes
them: every scalar present, `data` only when there is some. They are read in any field order with
any scalar left out (as 3.7 does), but an unknown field is refused: what can't be understood can't
be called intact.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from quorate.core._bytes cimport crc32c, store_le64
from quorate.core._protobuf cimport (
    Reader,
    Span,
    WIRE_BYTES,
    WIRE_VARINT,
    read_bytes,
    read_tag,
    read_varint,
    write_varint,
)

cdef enum RecordType:
    RECORD_METADATA = 1
    RECORD_ENTRY = 2
    RECORD_STATE = 3
    RECORD_CRC = 4
    RECORD_SNAPSHOT = 5

cdef enum:
    FRAME_HEADER_SIZE = 8
    # What no interrupted write splits.
    SECTOR_SIZE = 512
    # Three varints with tags and one tag and length: Entry without its data, HardState, Metadata.
    MESSAGE_HEADER_MAX = 48
    # Frame word, record fields, message header and padding around a record's payload.
    RECORD_OVERHEAD_MAX = FRAME_HEADER_SIZE + 24 + MESSAGE_HEADER_MAX + 7


cdef struct Record:
    uint64_t type       # RecordType
    uint32_t crc        # of all data up to and with this record's
    Span data           # inside the buffer that was parsed


cdef struct EntryFields:
    uint64_t type
    uint64_t term
    uint64_t index
    Span data


cdef struct Triple:
    uint64_t first      # HardState.term, Metadata.NodeID, Snapshot.index
    uint64_t second     # HardState.vote, Metadata.ClusterID, Snapshot.term
    uint64_t third      # HardState.commit


cdef inline bint parse_frame(uint64_t word, uint64_t *size, uint64_t *total) noexcept nogil:
    """The record's size and the whole frame's; False for a word that no writer makes."""
    cdef uint64_t pad = 0
    if word >> 63:
        pad = (word >> 56) & 7
        if (word >> 56) & 0x78 or pad == 0:
            return False
    elif word >> 56:
        return False
    size[0] = (word << 8) >> 8
    total[0] = FRAME_HEADER_SIZE + size[0] + pad
    return size[0] > 0 and total[0] % 8 == 0


cdef inline bint parse_record(const uint8_t *data, size_t size, Record *record) noexcept nogil:
    """One walpb.Record; False when it is malformed or of an unknown type."""
    cdef Reader reader = Reader(data, data + size)
    cdef uint32_t field = 0
    cdef int wire = 0
    cdef uint64_t value = 0
    record.type = record.crc = 0
    record.data = Span(NULL, 0)
    while reader.at < reader.end:
        if not read_tag(&reader, &field, &wire):
            return False
        if field == 3 and wire == WIRE_BYTES:
            if not read_bytes(&reader, &record.data):
                return False
        elif field <= 2 and wire == WIRE_VARINT:
            if not read_varint(&reader, &value):
                return False
            if field == 1:
                record.type = value
            elif value >> 32:
                return False
            else:
                record.crc = <uint32_t>value
        else:
            return False
    return RECORD_METADATA <= record.type <= RECORD_SNAPSHOT


cdef inline bint parse_entry(Span data, EntryFields *entry) noexcept nogil:
    """One raftpb.Entry; False when it is malformed or no raft could have made it."""
    cdef Reader reader = Reader(data.data, data.data + data.size)
    cdef uint32_t field = 0
    cdef int wire = 0
    entry.type = entry.term = entry.index = 0
    entry.data = Span(NULL, 0)
    while reader.at < reader.end:
        if not read_tag(&reader, &field, &wire):
            return False
        if field == 4 and wire == WIRE_BYTES:
            if not read_bytes(&reader, &entry.data):
                return False
        elif field > 3 or wire != WIRE_VARINT:
            return False
        elif not read_varint(&reader, &entry.type if field == 1 else
                             &entry.term if field == 2 else &entry.index):
            return False
    # There is no empty ConfChange; an empty ConfChangeV2 is how a joint configuration is left.
    return entry.type <= 2 and not (entry.type == 1 and entry.data.size == 0)


cdef inline bint parse_triple(Span data, int fields, Triple *triple) noexcept nogil:
    """Fields of HardState (3 varints), Metadata (2) or Snapshot (2, then a ConfState)."""
    cdef Reader reader = Reader(data.data, data.data + data.size)
    cdef Span ignored
    cdef uint32_t field = 0
    cdef int wire = 0
    triple[0] = Triple(0, 0, 0)
    while reader.at < reader.end:
        if not read_tag(&reader, &field, &wire):
            return False
        if field == 3 and fields == 2 and wire == WIRE_BYTES:
            if not read_bytes(&reader, &ignored):
                return False
        elif field > <uint32_t>fields or wire != WIRE_VARINT:
            return False
        elif not read_varint(&reader, &triple.first if field == 1 else
                             &triple.second if field == 2 else &triple.third):
            return False
    return True


cdef inline size_t write_triple(
        uint8_t *at, uint64_t first, uint64_t second, uint64_t third, int fields) noexcept nogil:
    """HardState (3 fields), Metadata or Snapshot (2) as etcd writes them; answers the size."""
    cdef uint8_t *end = at
    end[0] = 0x08
    end = write_varint(end + 1, first)
    end[0] = 0x10
    end = write_varint(end + 1, second)
    if fields == 3:
        end[0] = 0x18
        end = write_varint(end + 1, third)
    return end - at


cdef inline size_t write_entry_header(
        uint8_t *at, uint64_t entry_type, uint64_t term, uint64_t index,
        size_t size) noexcept nogil:
    """A raftpb.Entry up to its data; without data there is no data field. Answers the size."""
    cdef uint8_t *end = at + write_triple(at, entry_type, term, index, 3)
    if size:
        end[0] = 0x22
        end = write_varint(end + 1, size)
    return end - at


cdef inline size_t write_record(
        uint8_t *at, uint32_t *crc, RecordType record_type, const uint8_t *header,
        size_t header_size, const uint8_t *payload, size_t size) noexcept nogil:
    """One frame with `header` and then `payload`; moves the chain `crc` on. Answers the size.

    `at` has room for RECORD_OVERHEAD_MAX + size bytes.
    """
    cdef size_t data_size = header_size + size
    cdef size_t record_size
    cdef uint64_t pad
    cdef uint8_t *end = at + FRAME_HEADER_SIZE
    crc[0] = crc32c(crc32c(crc[0], header, header_size), payload, size)
    end[0] = 0x08
    end[1] = record_type
    end[2] = 0x10
    end = write_varint(end + 3, crc[0])
    if data_size:
        end[0] = 0x1a
        end = write_varint(end + 1, data_size)
        memcpy(end, header, header_size)
        if size:
            memcpy(end + header_size, payload, size)
        end += data_size
    record_size = end - at - FRAME_HEADER_SIZE
    pad = (8 - record_size % 8) % 8
    memset(end, 0, pad)
    store_le64(at, record_size | (((0x80 | pad) << 56) if pad else 0))
    return FRAME_HEADER_SIZE + record_size + pad
