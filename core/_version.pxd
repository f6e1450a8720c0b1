# cython: language_level=3
"""One version of one key: its layout in memory and how to read it."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uintptr_t

from quorate.core._bytes cimport crc32c

cdef enum:
    VERSION_LEASED = 1      # a Hold stands behind all else, at the next multiple of 8
    VERSION_OUTSIDE = 2     # the value's address stands in its place, at the next multiple of 8
    VERSION_MAPPED = 4      # and it lies in a mapped file, not in a block of the arena
    VERSION_REACHED = 24    # two bits, the mark of _scrub.pyx; 0: it did not see the version yet
    # Smaller values stay in the record for ever: an address and a block cost as much.
    VALUE_OUTSIDE_MIN = 64
    # The bits of `flags` above these are a checksum of what is immutable; 0: there is none yet.
    VERSION_SEAL_SHIFT = 8
    # Sizes, revisions and version: the head of a Version, which never changes.
    VERSION_HEAD_BYTES = 32


cdef struct LeaseLink:
    # A place in the ring of a lease's keys. Each side is the address of a Version, or that of the
    # lease's own LeaseLink and 1. Both 0: in no ring.
    uintptr_t next
    uintptr_t prior


cdef struct Hold:
    # What a version that hangs on a lease has besides; only the key's newest one is in the ring.
    int64_t lease
    LeaseLink link


cdef struct Version:
    # Immutable, but for its links and the place of its value, once its transaction ended. The bytes
    # of the key and of the value (or where that is) follow, then the Hold if there is one. Read
    # those through the functions below.
    uint32_t key_size       # first, because the tree reads it there
    uint32_t value_size
    int64_t mod_revision
    int64_t create_revision  # 0 of a tombstone
    int64_t version         # 1 after creation; 0 = this version is a tombstone
    Version *previous       # the next older version of the key that is still stored, or NULL
    Version *newer          # the next newer one, or NULL: this is the newest
    uint32_t sub            # place within its revision
    uint32_t flags          # VERSION_LEASED, _OUTSIDE, _MAPPED, _REACHED, and the seal


cdef inline const uint8_t *version_key(const Version *version) noexcept nogil:
    """The key's bytes; `version_key_size` tells how many."""
    return <const uint8_t *>version + sizeof(Version)


cdef inline size_t version_key_size(const Version *version) noexcept nogil:
    """Bytes of the key."""
    return version.key_size


cdef inline size_t grain(size_t size) noexcept nogil:
    """The next multiple of 8."""
    return (size + 7) & ~<size_t>7


cdef inline const uint8_t **version_place(const Version *version) noexcept nogil:
    """Where a version that is VERSION_OUTSIDE has the address of its value."""
    return <const uint8_t **>(<uint8_t *>version + grain(sizeof(Version) + version.key_size))


cdef inline const uint8_t *version_value(const Version *version) noexcept nogil:
    """The value's bytes; `version_value_size` tells how many."""
    if version.flags & VERSION_OUTSIDE:
        return version_place(version)[0]
    return <const uint8_t *>version + sizeof(Version) + version.key_size


cdef inline size_t version_value_size(const Version *version) noexcept nogil:
    """Bytes of the value."""
    return version.value_size


cdef inline int64_t version_lease(const Version *version) noexcept nogil:
    """The lease that the key hangs on since this version; 0 = none."""
    return version_hold(version).lease if version.flags & VERSION_LEASED else 0


cdef inline size_t content_size(
        size_t key_size, size_t value_size, uint32_t flags) noexcept nogil:
    """Bytes of a record without its Hold."""
    if flags & VERSION_OUTSIDE:
        return grain(sizeof(Version) + key_size) + sizeof(uint8_t *)
    return sizeof(Version) + key_size + value_size


cdef inline size_t record_bytes(
        size_t key_size, size_t value_size, uint32_t flags) noexcept nogil:
    """Bytes of a record in the arena."""
    cdef size_t size = content_size(key_size, value_size, flags)
    return grain(size) + sizeof(Hold) if flags & VERSION_LEASED else size


cdef inline Hold *version_hold(const Version *version) noexcept nogil:
    """What ties a version that is VERSION_LEASED to its lease."""
    cdef size_t size = content_size(version.key_size, version.value_size, version.flags)
    return <Hold *>(<uint8_t *>version + grain(size))


cdef inline uint32_t version_checksum(const Version *version) noexcept nogil:
    """Of all that never changes but a value in a mapped file: 24 bits and never 0."""
    cdef uint32_t[2] place = [version.sub, version.flags & (VERSION_LEASED | VERSION_OUTSIDE)]
    cdef uint32_t crc = crc32c(0, <const uint8_t *>version, VERSION_HEAD_BYTES)
    crc = crc32c(crc, <const uint8_t *>place, sizeof(place))
    crc = crc32c(crc, version_key(version), version.key_size)
    if not version.flags & VERSION_MAPPED:
        crc = crc32c(crc, version_value(version), version.value_size)
    if version.flags & VERSION_LEASED:
        crc = crc32c(crc, <const uint8_t *>&version_hold(version).lease, sizeof(int64_t))
    return crc >> VERSION_SEAL_SHIFT or 1


cdef inline void version_seal(Version *version) noexcept nogil:
    """From now on damage to the version can be seen."""
    cdef uint32_t flags = version.flags & ((1 << VERSION_SEAL_SHIFT) - 1)
    version.flags = flags | version_checksum(version) << VERSION_SEAL_SHIFT


cdef inline void version_unseal(Version *version) noexcept nogil:
    """The version is not as it was sealed, and is sealed again when it is looked at."""
    version.flags &= (1 << VERSION_SEAL_SHIFT) - 1


cdef inline bint version_is_sound(const Version *version) noexcept nogil:
    """Whether the version is as it was sealed, if it was."""
    cdef uint32_t seal = version.flags >> VERSION_SEAL_SHIFT
    return seal == 0 or seal == version_checksum(version)


cdef inline bint version_is_tombstone(const Version *version) noexcept nogil:
    """Whether this version deleted the key."""
    return version.version == 0


cdef inline Version *version_previous(const Version *version) noexcept nogil:
    """The version that this one replaced; NULL or a tombstone = the key did not exist."""
    return version.previous


cdef inline size_t version_size(const Version *version) noexcept nogil:
    """Bytes of the whole record in the arena, without a value outside."""
    return record_bytes(version.key_size, version.value_size, version.flags)


cdef inline LeaseLink *link_at(uintptr_t place) noexcept nogil:
    """The links at one side of a LeaseLink."""
    if place & 1:
        return <LeaseLink *>(place - 1)
    return &version_hold(<Version *>place).link


cdef inline void ring_open(LeaseLink *ring) noexcept nogil:
    """Make the lease's own link a ring of no keys."""
    ring.next = ring.prior = <uintptr_t>ring | 1


cdef inline void ring_add(LeaseLink *ring, Version *version) noexcept nogil:
    """Hang a leased version into a ring."""
    cdef LeaseLink *link = &version_hold(version).link
    link.next = ring.next
    link.prior = <uintptr_t>ring | 1
    link_at(ring.next).prior = <uintptr_t>version
    ring.next = <uintptr_t>version


cdef inline void ring_remove(Version *version) noexcept nogil:
    """Take a version out of the ring that it is in, if it is in one."""
    cdef LeaseLink *link
    if not version.flags & VERSION_LEASED:
        return
    link = &version_hold(version).link
    if link.next == 0:
        return
    link_at(link.prior).next = link.next
    link_at(link.next).prior = link.prior
    link.next = link.prior = 0
