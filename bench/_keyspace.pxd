# cython: language_level=3
"""Numbered keys, their values, and what the server acknowledged of each: the C half."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    PREFIX_MAX = 64             # bytes of a prefix; real ones are about 30
    DIGITS = 9                  # of a key's number, zero-padded, so that all keys are of one size
    STAMP = 16                  # bytes at a value's start: key's number, then write's serial
    # Key n's lease is this + n: below 2**31, and all ids take five bytes on the wire.
    LEASE_FIRST = 1 << 28


cdef struct Keys:
    uint8_t[PREFIX_MAX] prefix
    size_t prefix_size
    size_t key_size             # prefix_size + DIGITS
    size_t value_size           # at least STAMP
    int64_t count
    uint8_t *filler             # owned; what follows the stamp in every value
    int64_t *revisions          # owned; by key: the newest mod revision seen, 0 for none
    uint64_t *serials           # owned; by key: the serial that this revision wrote
    uint32_t *versions          # owned; by key: how many writes were acknowledged
    uint64_t serial             # the last one given out
    int64_t highest             # the highest revision that any write's reply showed
    int64_t writes              # acknowledged


cdef inline void write_number(uint8_t *at, int64_t number) noexcept nogil:
    """The DIGITS decimal digits of a key's number."""
    cdef int place
    for place in range(DIGITS - 1, -1, -1):
        at[place] = <uint8_t>(48 + number % 10)
        number //= 10


cdef inline bint is_key(const Keys *keys, int64_t number,
                        const uint8_t *data, size_t size) noexcept nogil:
    """Whether these bytes are the key of that number."""
    cdef uint8_t[DIGITS] digits
    if size != keys.key_size or memcmp(data, keys.prefix, keys.prefix_size) != 0:
        return False
    write_number(digits, number)
    return memcmp(data + keys.prefix_size, digits, DIGITS) == 0


cdef inline void write_value(const Keys *keys, uint8_t *at, int64_t number,
                             uint64_t serial) noexcept nogil:
    """The value of one write: stamp and filler."""
    memcpy(at, &number, 8)
    memcpy(at + 8, &serial, 8)
    memcpy(at + STAMP, keys.filler, keys.value_size - STAMP)


cdef inline uint64_t serial_in(const Keys *keys, int64_t number,
                               const uint8_t *data, size_t size) noexcept nogil:
    """The serial number of the write that put these bytes under that key; 0 when none did."""
    cdef int64_t stamped
    cdef uint64_t serial
    if size != keys.value_size or memcmp(data + STAMP, keys.filler, size - STAMP) != 0:
        return 0
    memcpy(&stamped, data, 8)
    memcpy(&serial, data + 8, 8)
    return serial if stamped == number and serial <= keys.serial else 0


cdef inline bint is_value(const Keys *keys, int64_t number, int64_t revision,
                          const uint8_t *data, size_t size) noexcept nogil:
    """Whether these bytes were put under that key, and at that revision when we know the write."""
    cdef uint64_t serial = serial_in(keys, number, data, size)
    if serial == 0:
        return False
    return revision != keys.revisions[number] or serial == keys.serials[number]


cdef inline void acknowledge(Keys *keys, int64_t number, uint64_t serial,
                             int64_t revision) noexcept nogil:
    """Remember that the server wrote `serial` under this key at `revision`."""
    keys.writes += 1
    keys.versions[number] += 1
    if revision > keys.revisions[number]:
        keys.revisions[number] = revision
        keys.serials[number] = serial
    if revision > keys.highest:
        keys.highest = revision


cdef inline void forget(Keys *keys, int64_t number, int64_t revision) noexcept nogil:
    """Remember that the server deleted this key at `revision`."""
    keys.writes += 1
    keys.versions[number] = 0
    keys.revisions[number] = 0
    keys.serials[number] = 0
    if revision > keys.highest:
        keys.highest = revision


cdef class Keyspace:
    cdef Keys keys
