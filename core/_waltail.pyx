"""What follows the last good record: the clean end of the log, a torn write, or damage.

Segments are filled with zeros before use, a disk writes a 512-byte sector whole or not at all,
and nothing acknowledged comes after something that was not. So a torn write shows zeros where a
sector (or, when a process was killed inside its write, the rest of the file) is missing, while
damage shows something else:

1. One flipped bit in the frame, wherever it is, is found by trying: damage. (A flip in a frame's
   length would otherwise look like the end of the log, and a flip in a record that holds zeros
   like a torn one.)
2. A length of zero with data behind it in the same sector: damage, for that sector was written.
3. A word that no writer makes as a length, with data behind it: damage.
4. A record that ends beyond its file: torn if the record's own inner length agrees, else damage.
5. A record that does not check and misses no sector and no end: damage.
6. The rest is torn, unless a HardState further on commits the missing index: damage.

This is etcd's rule (5: a bad record is torn if any of its sector chunks is all zeros) plus 1, 2,
3, 4 and 6; etcd cuts silently in the cases that they name. A torn write whose missing part had
exactly one bit set is refused by 1.
"""

from libc.string cimport memcmp

from quorate.core._bytes cimport crc32c, load_le64
from quorate.core._protobuf cimport Reader, read_tag, read_varint
from quorate.core._walframe cimport (
    FRAME_HEADER_SIZE,
    RECORD_CRC,
    RECORD_STATE,
    SECTOR_SIZE,
    Record,
    Triple,
    parse_frame,
    parse_record,
    parse_triple,
)

cdef enum:
    # Before its data a record has at most: tag and varint type, tag and crc, tag and length.
    RECORD_PREFIX_MAX = 2 + 6 + 11


cdef bint is_zero(const uint8_t *data, size_t size) noexcept nogil:
    """Whether all bytes are zero."""
    return size == 0 or (data[0] == 0 and memcmp(data, data + 1, size - 1) == 0)


cdef Verdict judge_tail(Tail *tail) noexcept nogil:
    """Clean, torn or corrupt: the rules of the module, in their order."""
    cdef uint64_t size = 0
    cdef uint64_t total = 0
    cdef uint64_t word
    cdef size_t sector_rest = SECTOR_SIZE - tail.offset % SECTOR_SIZE
    tail.reason = NULL
    if is_zero(tail.data, tail.size):
        return TAIL_CLEAN
    if tail.size < FRAME_HEADER_SIZE:
        return TAIL_TORN
    word = load_le64(tail.data)
    if one_bit_explains(tail):
        tail.reason = "one bit of this record is flipped"
    elif word == 0:
        if not is_zero(tail.data, min(sector_rest, tail.size)):
            tail.reason = "a frame without a length is followed by data in its own sector"
    elif not parse_frame(word, &size, &total):
        if not is_zero(tail.data + FRAME_HEADER_SIZE, tail.size - FRAME_HEADER_SIZE):
            tail.reason = "this frame's length is none that a log has"
    elif total > tail.size:
        if not inner_length_agrees(tail, size):
            tail.reason = "this frame's length leads beyond the end of the file"
    elif not misses_a_part(tail, size, total):
        tail.reason = "this record's checksum or form is wrong and no sector of it is missing"
    if tail.reason == NULL and committed_later(tail):
        tail.reason = "this record is damaged and a later one says that it was committed"
    return TAIL_TORN if tail.reason == NULL else TAIL_CORRUPT


cdef bint checks(Tail *tail, Record *record) noexcept nogil:
    """Whether the frame at the start of the tail is a good next record of the chain."""
    cdef uint64_t total = 0
    return (record_at(tail, 0, record, &total) and record.type != RECORD_CRC
            and crc32c(tail.crc, record.data.data, record.data.size) == record.crc)


cdef bint one_bit_explains(Tail *tail) noexcept nogil:
    """Whether flipping one bit of the frame makes it good."""
    cdef Record record
    cdef uint64_t size = 0
    cdef uint64_t total = 0
    cdef size_t bits = FRAME_HEADER_SIZE * 8
    cdef size_t bit
    cdef bint found = False
    if parse_frame(load_le64(tail.data), &size, &total) and total <= tail.size:
        bits += 8 * min(size, <uint64_t>RECORD_PREFIX_MAX)
    for bit in range(bits):
        tail.data[bit // 8] ^= <uint8_t>(1 << (bit % 8))
        found = checks(tail, &record)
        tail.data[bit // 8] ^= <uint8_t>(1 << (bit % 8))
        if found:
            return True
    if bits == FRAME_HEADER_SIZE * 8:
        return False
    if not parse_record(tail.data + FRAME_HEADER_SIZE, size, &record):
        return False
    return one_bit_distance(record.data.size,
                            crc32c(tail.crc, record.data.data, record.data.size) ^ record.crc)


cdef bint one_bit_distance(size_t size, uint32_t difference) noexcept nogil:
    """Whether two CRCs differ as those of two strings of `size` bytes that differ in one bit.

    CRCs are linear: the difference depends only on the bit's distance from the end. O(8 * size).
    """
    cdef uint32_t[8] registers
    cdef uint8_t byte
    cdef uint8_t zero = 0
    cdef size_t distance = 0
    cdef int bit
    for bit in range(8):
        byte = <uint8_t>(1 << bit)
        registers[bit] = ~crc32c(0xffffffff, &byte, 1)
    while distance < size:
        for bit in range(8):
            if registers[bit] == difference:
                return True
            registers[bit] = ~crc32c(~registers[bit], &zero, 1)
        distance += 1
    return False


cdef bint inner_length_agrees(Tail *tail, uint64_t size) noexcept nogil:
    """Whether what is there of a record speaks for the frame's `size`, or is too little."""
    cdef size_t there = min(tail.size - FRAME_HEADER_SIZE, <size_t>RECORD_PREFIX_MAX)
    cdef const uint8_t *start = tail.data + FRAME_HEADER_SIZE
    cdef Reader reader = Reader(start, start + there)
    cdef uint32_t field = 0
    cdef int wire = 0
    cdef uint64_t value = 0
    while reader.at < reader.end:
        if not read_tag(&reader, &field, &wire) or not read_varint(&reader, &value):
            return there < RECORD_PREFIX_MAX or is_zero(start, tail.size - FRAME_HEADER_SIZE)
        if field == 3:
            return <uint64_t>(reader.at - start) + value == size
    return there < RECORD_PREFIX_MAX


cdef bint misses_a_part(Tail *tail, uint64_t size, uint64_t total) noexcept nogil:
    """Whether a sector's share of the body is all zeros, or its last byte and all after it."""
    cdef uint64_t at = FRAME_HEADER_SIZE
    cdef uint64_t chunk
    while at < total:
        chunk = min(SECTOR_SIZE - (tail.offset + at) % SECTOR_SIZE, total - at)
        if is_zero(tail.data + at, chunk):
            return True
        at += chunk
    at = FRAME_HEADER_SIZE + size - 1
    return is_zero(tail.data + at, tail.size - at)


cdef bint committed_later(Tail *tail) noexcept nogil:
    """Whether a HardState anywhere in the tail commits the index that is missing.

    It is found by its form: the chain before it is broken, so nothing can vouch for its CRC.
    """
    cdef size_t at = 0
    cdef uint64_t total = 0
    cdef Record record
    cdef Triple state
    while at < tail.size:
        if (record_at(tail, at, &record, &total) and record.type == RECORD_STATE
                and parse_triple(record.data, 3, &state) and state.third >= tail.next_index):
            return True
        at += FRAME_HEADER_SIZE
    return False


cdef bint record_at(Tail *tail, size_t at, Record *record, uint64_t *total) noexcept nogil:
    """Whether a well-formed frame and record stand at `at`; their CRC is not looked at."""
    cdef uint64_t size = 0
    return (at + FRAME_HEADER_SIZE <= tail.size
            and parse_frame(load_le64(tail.data + at), &size, total)
            and total[0] <= tail.size - at
            and parse_record(tail.data + at + FRAME_HEADER_SIZE, size, record))
