# cython: language_level=3
"""One version of one key: its layout in memory and how to read it."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from quorate.core._bytes cimport load_le64

cdef enum:
    VERSION_LEASED = 1      # the lease's id stands after the value


cdef struct Version:
    # Immutable, but for its links, once its transaction ended. The bytes of the key and of the
    # value follow, then the lease if there is one. Read those through the functions below.
    uint32_t key_size       # first, because the tree reads it there
    uint32_t value_size
    int64_t mod_revision
    int64_t create_revision  # 0 of a tombstone
    int64_t version         # 1 after creation; 0 = this version is a tombstone
    Version *previous       # the next older version of the key that is still stored, or NULL
    Version *newer          # the next newer one, or NULL: this is the newest
    uint32_t sub            # place within its revision
    uint32_t flags          # VERSION_LEASED


cdef inline const uint8_t *version_key(const Version *version) noexcept nogil:
    """The key's bytes; `version_key_size` tells how many."""
    return <const uint8_t *>version + sizeof(Version)


cdef inline size_t version_key_size(const Version *version) noexcept nogil:
    """Bytes of the key."""
    return version.key_size


cdef inline const uint8_t *version_value(const Version *version) noexcept nogil:
    """The value's bytes; `version_value_size` tells how many."""
    return <const uint8_t *>version + sizeof(Version) + version.key_size


cdef inline size_t version_value_size(const Version *version) noexcept nogil:
    """Bytes of the value."""
    return version.value_size


cdef inline int64_t version_lease(const Version *version) noexcept nogil:
    """The lease that the key hangs on since this version; 0 = none."""
    if version.flags & VERSION_LEASED:
        return <int64_t>load_le64(version_value(version) + version.value_size)
    return 0


cdef inline bint version_is_tombstone(const Version *version) noexcept nogil:
    """Whether this version deleted the key."""
    return version.version == 0


cdef inline Version *version_previous(const Version *version) noexcept nogil:
    """The version that this one replaced; NULL or a tombstone = the key did not exist."""
    return version.previous


cdef inline size_t version_size(const Version *version) noexcept nogil:
    """Bytes of the whole record in the arena."""
    return (
        sizeof(Version) + version.key_size + version.value_size
        + (8 if version.flags & VERSION_LEASED else 0)
    )
