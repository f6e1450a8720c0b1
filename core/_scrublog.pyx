"""Looking through the log for damage: every record from the oldest segment to what is synced.

Rules:
1. A pass ends where the log was synced when it began, and there the chain of checksums has to be
   the writer's own. What is appended meanwhile, and the zeros that fill segments, are not looked
   at.
2. Segments are removed from the oldest on while a pass goes on: the open one stays readable; then
   the pass goes on with the oldest that there is. Any other one that is missing is a fault.
3. The first segment of a pass is believed in where its chain begins; each later one goes on with
   the chain of the one before. The second record of each is the log's metadata.
4. What is read is bounded by what is there; nothing is believed that was not checked.
"""

from libc.errno cimport ENOENT
from libc.string cimport memcmp, memmove

from quorate.core._bytes cimport buffer_free, buffer_reserve, crc32c, load_le64
from quorate.core._walframe cimport (
    FRAME_HEADER_SIZE, RECORD_CRC, RECORD_ENTRY, RECORD_METADATA, RECORD_STATE, EntryFields, Triple,
    parse_entry, parse_frame, parse_record, parse_triple,
)
from quorate.core._waltail cimport is_zero

from quorate.core._disk import DiskError
from quorate.core._walread import SEGMENT_NAME

cdef enum:
    READ_BYTES = 64 * 1024
    # Bytes and records that take about a microsecond.
    BYTES_PER_LOOK = 4096
    RECORDS_PER_LOOK = 16
    # Records that take as long as reading once.
    RECORDS_PER_READ = READ_BYTES // BYTES_PER_LOOK * RECORDS_PER_LOOK


class LogFault(Exception):
    """Where, and what is wrong."""


cdef class LogScrub:
    """A pass over the log after another."""

    def __init__(self, Wal wal not None):
        self.wal = wal
        self.metadata = wal.metadata
        self.metadata_size = len(wal.metadata)

    def __dealloc__(self):
        buffer_free(&self.window)

    @property
    def size(self):
        """Microseconds of a pass, about: of the last one, or what is known before the first."""
        return 2 * max(self.pass_bytes, self.wal.synced.offset) // BYTES_PER_LOOK

    def step(self, uint64_t looks):
        """Look at about so much, to the end of the pass at most; answers what is wrong.

        Raises DiskError; then the pass begins anew, as after a fault.
        """
        cdef bint more
        try:
            if self.file is None:
                self.begin()
                return ""
            with nogil:
                more = self.take(looks)
            if more:
                return ""
            if self.at.sequence == self.end.sequence:
                if self.at.crc != self.end.crc:
                    self.refuse(b"the chain of checksums is not the one that was written")
                self.finish()
            elif not self.open_segment(self.at.sequence + 1):
                self.finish()
        except (LogFault, DiskError) as fault:
            self.file = None
            if isinstance(fault, DiskError):
                raise
            return str(fault)
        return ""

    cdef begin(self):
        """Open the oldest segment."""
        self.end = self.wal.synced
        self.pass_bytes = 0
        self.forget()
        if not self.open_segment(0):
            self.finish()

    cdef forget(self):
        """What comes next is not behind what was looked at."""
        self.is_chained = False
        self.last_index = self.last_term = self.commit = 0

    cdef finish(self):
        self.passes += 1
        self.file = None
        self.window.size = 0

    cdef bint open_segment(self, uint64_t sequence) except -1:
        """Open this segment, or the oldest one where it is gone; False when all that was synced
        are gone.
        """
        cdef uint64_t oldest
        directory = self.wal.directory
        while True:
            found = filter(None, map(SEGMENT_NAME.fullmatch, self.wal.disk.list(directory) or ()))
            names = {int(match[1], 16): match[0] for match in found}
            oldest = min(names, default=0)
            if oldest > sequence:
                # Nothing was removed but what is older than all that is left.
                sequence = oldest
                self.forget()
            if sequence > self.end.sequence:
                return False
            if sequence not in names:
                raise LogFault(f"{directory}: segment {sequence:016x} is missing")
            try:
                self.file = OpenFile(self.wal.disk, f"{directory}/{names[sequence]}")
                break
            except DiskError as error:
                if error.errno != ENOENT:
                    raise
        self.at.sequence = sequence
        self.at.offset = self.window_offset = 0
        self.window.size = self.records = 0
        self.limit = self.wal.disk.size(self.file.handle, self.file.path)
        if sequence == self.end.sequence:
            if self.limit < self.end.offset:
                raise LogFault(
                    f"{self.file.path}: the file has {self.limit} bytes, and {self.end.offset} "
                    "were written")
            self.limit = self.end.offset
        return True

    cdef bint take(self, uint64_t looks) except -1 nogil:
        """Read and look for about so long; False at the end of the segment's records."""
        cdef Record record
        cdef const uint8_t *frame
        cdef const char *reason
        cdef uint64_t word
        cdef uint64_t size = 0
        cdef uint64_t total = 0
        cdef bint is_last = self.at.sequence == self.end.sequence
        cdef uint64_t count = looks * RECORDS_PER_LOOK
        while count:
            count -= 1
            if self.at.offset == self.limit and is_last:
                return False
            if self.limit - self.at.offset < FRAME_HEADER_SIZE:
                return self.refuse(b"the log ends before what was written") if is_last else False
            frame = self.view(FRAME_HEADER_SIZE)
            if frame == NULL:
                count -= min(count, <uint64_t>RECORDS_PER_READ)
                continue
            word = load_le64(frame)
            if word == 0 and not is_last and self.records:
                return False
            if not parse_frame(word, &size, &total) or total > self.limit - self.at.offset:
                return self.refuse(b"this frame's length is none that was written")
            frame = self.view(total)
            if frame == NULL:
                count -= min(count, <uint64_t>RECORDS_PER_READ)
                continue
            if not parse_record(frame + FRAME_HEADER_SIZE, size, &record):
                return self.refuse(b"this record's form is wrong")
            size += FRAME_HEADER_SIZE
            if not is_zero(frame + size, total - size):
                return self.refuse(b"what fills this frame up is not zeros")
            reason = self.inspect(&record)
            if reason != NULL:
                return self.refuse(reason)
            self.at.offset += total
            self.records += 1
        return True

    cdef const uint8_t *view(self, uint64_t size) except? NULL nogil:
        """`size` bytes of the segment from the place on; NULL when a piece was read, and they may
        be there now.
        """
        cdef uint64_t skip = self.at.offset - self.window_offset
        cdef uint64_t end
        if skip + size <= self.window.size:
            return self.window.data + skip
        if skip:
            self.window.size -= skip
            memmove(self.window.data, self.window.data + skip, self.window.size)
            self.window_offset += skip
        end = self.window_offset + self.window.size
        size = min(<uint64_t>READ_BYTES, self.limit - end)
        buffer_reserve(&self.window, size)
        self.file.read(self.window.data + self.window.size, size, end)
        self.window.size += size
        self.pass_bytes += size
        return NULL

    cdef const char *inspect(self, Record *record) noexcept nogil:
        """NULL, or what is wrong with the next record."""
        if (self.records == 0) != (record.type == RECORD_CRC):
            return b"a segment begins with one crc record and holds no other"
        if record.type == RECORD_CRC:
            if self.is_chained and record.crc != self.at.crc:
                return b"the segment's first crc does not continue the one before"
            self.is_chained = True
            self.at.crc = record.crc
            return NULL
        self.at.crc = crc32c(self.at.crc, record.data.data, record.data.size)
        if self.at.crc != record.crc:
            return b"this record's checksum is wrong"
        if self.records == 1 and record.type != RECORD_METADATA:
            return b"the second record of a segment is not its metadata"
        if record.type == RECORD_METADATA:
            if record.data.size != self.metadata_size or memcmp(
                    record.data.data, self.metadata, self.metadata_size):
                return b"the metadata is not that of the log"
            return NULL
        if record.type == RECORD_ENTRY:
            return self.inspect_entry(record)
        return self.inspect_other(record)

    cdef const char *inspect_entry(self, Record *record) noexcept nogil:
        """The checksum is not of a record's type: that its content and place must tell."""
        cdef EntryFields entry
        if not parse_entry(record.data, &entry) or entry.term == 0 or entry.index <= self.commit:
            return b"this is no entry, or overrides a committed one"
        if self.last_index and (
                entry.index > self.last_index + 1
                or (entry.index > self.last_index and entry.term < self.last_term)):
            return b"this entry does not follow the one before"
        self.last_index = entry.index
        self.last_term = entry.term
        return NULL

    cdef const char *inspect_other(self, Record *record) noexcept nogil:
        """A HardState or the record of a snapshot."""
        cdef Triple triple
        cdef bint is_state = record.type == RECORD_STATE
        if not parse_triple(record.data, 3 if is_state else 2, &triple):
            return b"a malformed hard state or snapshot record"
        if not is_state:
            # A leader sent it: the log goes on behind it.
            if self.last_index and triple.first > self.last_index:
                self.last_index = triple.first
                self.last_term = triple.second
        elif triple.first == 0 or triple.third < self.commit:
            return b"a hard state that goes back"
        else:
            self.commit = triple.third
        return NULL

    cdef int refuse(self, const char *reason) except -1 nogil:
        with gil:
            raise LogFault(f"{self.file.path}: offset {self.at.offset}: {reason.decode()}")
