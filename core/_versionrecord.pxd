# cython: language_level=3
"""A version as the bucket `key` of a backend file has it: how much room it takes, and its CRC.

Key: the revision. Value: a mvccpb.KeyValue; of a tombstone one with nothing but the key.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from quorate.core._bytes cimport crc32c, store_be64
from quorate.core._protobuf cimport varint_size, write_varint
from quorate.core._version cimport (
    Version, version_is_tombstone, version_key, version_lease, version_value,
)

cdef enum:
    # The page size, and what an element of a leaf page takes beside key and value.
    FILE_PAGE = 4096
    FILE_ELEMENT = 16
    # Bytes of a key: revision, '_', sub, big-endian, so that their order is the bytes'; a tombstone
    # has a 't' more.
    RECORD_KEY = 17
    RECORD_KEY_MAX = 18
    RECORD_UNDERSCORE_AT = 8
    RECORD_SUB_AT = 9
    RECORD_UNDERSCORE = 95
    RECORD_TOMBSTONE = 116


cdef inline size_t bytes_field_size(size_t size) noexcept nogil:
    """A protobuf field of bytes with a small number; 0 when it is empty and so left out."""
    return 1 + varint_size(size) + size if size else 0


cdef inline size_t integer_field_size(int64_t value) noexcept nogil:
    return 1 + varint_size(<uint64_t>value) if value else 0


cdef inline size_t record_size(const Version *version) noexcept nogil:
    """What the version takes in a leaf page of a backend file; the larger ones take whole pages."""
    cdef size_t size = FILE_ELEMENT + RECORD_KEY + bytes_field_size(version.key_size)
    if version_is_tombstone(version):
        return size + 1
    size += integer_field_size(version.create_revision) + integer_field_size(version.mod_revision)
    size += integer_field_size(version.version) + integer_field_size(version_lease(version))
    size += bytes_field_size(version.value_size)
    if size > FILE_PAGE // 2:
        return (size + FILE_PAGE - 1) // FILE_PAGE * FILE_PAGE
    return size


cdef inline uint8_t *write_integer_field(uint8_t *at, int field, int64_t value) noexcept nogil:
    if value:
        at[0] = <uint8_t>(field << 3)
        at = write_varint(at + 1, <uint64_t>value)
    return at


cdef inline uint8_t *write_record_key(uint8_t *at, const Version *version) noexcept nogil:
    """The key, into RECORD_KEY_MAX bytes; where it ends."""
    store_be64(at, <uint64_t>version.mod_revision)
    at[RECORD_UNDERSCORE_AT] = RECORD_UNDERSCORE
    store_be64(at + RECORD_SUB_AT, version.sub)
    if version_is_tombstone(version):
        at[RECORD_KEY] = RECORD_TOMBSTONE
        return at + RECORD_KEY_MAX
    return at + RECORD_KEY


cdef inline uint32_t crc_of_record(uint32_t crc, const Version *version) noexcept nogil:
    """Carry `crc` on over key and value in the bucket: a revision and a mvccpb.KeyValue."""
    cdef uint8_t[64] bytes
    cdef uint8_t *at = write_record_key(bytes, version)
    if version.key_size == 0:
        # See core/_restore.pyx, rule 2.
        return crc32c(crc, bytes, at - bytes)
    at[0] = 0x0a
    at = write_varint(at + 1, version.key_size)
    crc = crc32c(crc, bytes, at - bytes)
    crc = crc32c(crc, version_key(version), version.key_size)
    if version_is_tombstone(version):
        return crc
    at = write_integer_field(bytes, 2, version.create_revision)
    at = write_integer_field(at, 3, version.mod_revision)
    at = write_integer_field(at, 4, version.version)
    if version.value_size:
        at[0] = 0x2a
        at = write_varint(at + 1, version.value_size)
    crc = crc32c(crc, bytes, at - bytes)
    crc = crc32c(crc, version_value(version), version.value_size)
    at = write_integer_field(bytes, 6, version_lease(version))
    return crc32c(crc, bytes, at - bytes)
