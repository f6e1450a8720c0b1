"""Going through a whole backend file in steps: its digest, and copies of its buckets.

Rules:
1. A `Digest` is what etcd's `snapshot status` tells: the hash takes every bucket's name, then each
   key and value in it, in the file's order; keys count when their newest revision is no tombstone.
2. A `Copy` appends a bucket's pairs to the bucket that is open in a writer, as they are. A bucket
   in a bucket, which etcd never makes, is refused: nothing is left out in silence.
3. What the file holds is believed no further than `Bolt` checks it. Raises BoltError, BackendError.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from quorate.core._bytes cimport crc32c
from quorate.core._restore cimport Pair, read_pair, read_record_key

from quorate.core._restore import BackendError


cdef class Digest:
    """What a file is, in a few figures."""

    def __init__(self, Bolt bolt not None):
        self.bolt = bolt
        self.names = bolt.buckets()
        self.keys = set()

    def step(self, uint64_t pairs):
        """Take so many pairs more; False when there are none."""
        cdef uint64_t stop = self.pairs + pairs
        while self.pairs < stop:
            if self.at is None and not self.next_bucket():
                return False
            if not self.take(stop - self.pairs):
                self.at = None
        return True

    cdef bint next_bucket(self) except -1:
        """Begin the next bucket; False when that was the last."""
        cdef bytes name
        if not self.names:
            return False
        name = self.names.pop(0)
        self.hash = crc32c(self.hash, <const uint8_t *><const char *>name, len(name))
        self.at = Cursor(self.bolt, name)
        self.begun = False
        self.of_keys = name == b"key"
        return True

    cdef bint take(self, uint64_t pairs) except -1:
        """Take so many pairs of this bucket; False when it has no more."""
        cdef uint64_t _i
        for _i in range(pairs):
            if not (self.at.to_next() if self.begun else self.at.to_first()):
                return False
            self.begun = True
            self.pairs += 1
            with nogil:
                self.hash = crc32c(self.hash, self.at.key.data, self.at.key.size)
                if not self.at.is_bucket:
                    self.hash = crc32c(self.hash, self.at.value.data, self.at.value.size)
            if self.of_keys:
                self.count_key()
        return True

    cdef int count_key(self) except -1:
        """Note the revision and the key of a pair of the bucket `key`."""
        cdef Pair pair
        cdef bytes key
        memset(&pair, 0, sizeof(Pair))
        if not read_record_key(&self.at.key, &pair):
            raise BackendError(
                self.bolt.path, self.at.key.data[:self.at.key.size], "this is no revision")
        if self.at.is_bucket or not read_pair(&self.at.value, &pair):
            raise BackendError(
                self.bolt.path, self.at.key.data[:self.at.key.size], "a malformed key-value")
        self.revision = pair.revision
        key = pair.key.data[:pair.key.size]
        if pair.tombstone:
            self.keys.discard(key)
        else:
            self.keys.add(key)
        return 0


cdef class Copy:
    """A bucket on its way into another file."""

    def __init__(self, Bolt bolt not None, bytes bucket not None, BoltWriter writer not None):
        self.bolt = bolt
        self.writer = writer
        self.at = Cursor(bolt, bucket)

    def step(self, uint64_t pairs):
        """Copy so many pairs more; False when there are none. Raises DiskError, too."""
        cdef bint more
        with nogil:
            more = self.take(pairs)
        return more

    cdef bint take(self, uint64_t pairs) except -1 nogil:
        cdef uint64_t _i
        for _i in range(pairs):
            if not (self.at.to_next() if self.begun else self.at.to_first()):
                return False
            self.begun = True
            if self.at.is_bucket:
                self.bolt.refuse(self.at.page(), b"a bucket lies in a bucket of etcd's")
            self.writer.push(self.at.key, self.at.value)
            self.pairs += 1
        return True
