# cython: wraparound=True
"""Reading a log back: every record checked, entries gathered into runs, the torn tail cut.

Rules (etcd's, but for what is refused in 5):
1. Iterating yields runs of at most RUN_BYTES of one term, in log order, each entry once: the last
   record of an index wins and ends what came after the entry that it replaces.
2. To know the winner without holding the log, a run is given away only when a HardState has
   committed all of it; what no HardState commits comes last, cut at the commit index so that no
   run is half committed. Memory is bounded by the uncommitted part of the log and one run.
3. Entries up to `start_index` are in the snapshot and are skipped; a record of that very snapshot
   must be there. Without a `start_term` they are in a backend file, which can be at any entry: then
   that entry itself must be there, or a snapshot at its index, and tells the term.
4. Only the end of the last segment may be torn (core/_waltail.pyx says what torn is). It is cut
   with zeros; the cut bytes are kept beside it in `<segment>.<offset>.broken`. (etcd copies the
   whole segment; the cut bytes are all that is lost.)
5. Refused with file, offset and reason: a checksum or form that is wrong, an unknown record or
   field, an index gap, a term that goes back, a replaced committed entry, a HardState that goes
   back or commits what the log does not hold, a segment that is missing or whose head is not its
   own. Nothing is allocated by a length that was not checked.
6. Nothing on the disk changes before everything was read and judged.
"""

import re
from collections import deque

from libc.errno cimport EAGAIN, EIO
from libc.string cimport memcpy

from quorate.core._bytes cimport (
    buffer_append,
    buffer_free,
    buffer_reserve,
    crc32c,
    load_le32,
    load_le64,
    store_le32,
)
from quorate.core._disk import DiskError, checked
from quorate.core._run cimport ENTRY_CONF_CHANGE, ENTRY_HEADER_SIZE, ENTRY_NORMAL
from quorate.core._walframe cimport (
    FRAME_HEADER_SIZE,
    RECORD_CRC,
    RECORD_ENTRY,
    RECORD_METADATA,
    RECORD_SNAPSHOT,
    RECORD_STATE,
    Triple,
    parse_entry,
    parse_frame,
    parse_record,
    parse_triple,
)
from quorate.core._waltail cimport TAIL_CORRUPT, Tail, Verdict, is_zero, judge_tail
from quorate.core.errors import Fatal

cdef enum:
    RUN_BYTES = 4 * 1024 * 1024
    READ_BYTES = 1024 * 1024

SEGMENT_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal")
WAY_OUT = (
    "keep a copy of the data directory; then remove this member and add it again with an empty "
    "one, or restore a snapshot")


class WalCorruptError(Fatal):
    """The log holds what no crash leaves behind: where, why, and the way out."""

    def __init__(self, path, offset, reason):
        super().__init__(f"{path}: offset {offset}: {reason}; the log is refused: {WAY_OUT}")
        self.path = path
        self.offset = offset
        self.reason = reason


class WalLockedError(Fatal):
    """Another process has the log open."""

    def __init__(self, path):
        super().__init__(f"{path}: another process uses this data directory (the file is locked)")


def segment_names(disk, directory, start_index=0):
    """The segments to read for entries after `start_index`, in order; refuses a missing one."""
    found = [SEGMENT_NAME.fullmatch(name) for name in disk.list(directory) or []]
    segments = [(int(match[1], 16), int(match[2], 16), match[0]) for match in found if match]
    first = max((at for at, one in enumerate(segments) if one[1] <= start_index), default=None)
    if first is None:
        raise WalCorruptError(directory, 0, f"no segment holds entry {start_index + 1}")
    for before, after in zip(segments[first:], segments[first + 1:], strict=False):
        if after[0] != before[0] + 1:
            raise WalCorruptError(
                f"{directory}/{after[2]}", 0, f"the segment after {before[2]} is missing")
    return [name for _, _, name in segments[first:]]


def lock_segment(disk, handle, path):
    """Lock a segment for this process; raises WalLockedError when another has it."""
    try:
        disk.lock(handle, path)
    except DiskError as error:
        if error.errno == EAGAIN:
            raise WalLockedError(path) from None
        raise


cdef Run piece(Run run, uint32_t first, uint32_t count):
    """A run of `count` of the entries of `run`, from its entry `first` on."""
    cdef Run result = Run()
    cdef size_t at = 0
    cdef size_t start = 0
    cdef uint32_t entry
    for entry in range(first + count):
        if entry == first:
            start = at
        at += ENTRY_HEADER_SIZE + load_le32(run.entries.data + at)
    buffer_append(&result.entries, run.entries.data + start, at - start)
    result.count = count
    result.has_conf_change = run.has_conf_change
    result.assign(run.first_index + first, run.term)
    return result


cdef class WalReader:
    """An iterator of the runs after a snapshot; when it has ended, the log may be appended to."""

    def __cinit__(self, Disk disk, str directory, uint64_t start_index, uint64_t start_term):
        self.disk = disk
        self.directory = directory
        self.handle = self.tail_handle = -1
        self.start_index = self.last_index = start_index
        self.set_start_term(start_term)
        self.finds_term = start_index > 0 and start_term == 0
        self.pending = deque()
        self.snapshots = []
        self.names = segment_names(disk, directory, start_index)
        # The lock on the last segment is the lock on the log: held from here to the close.
        path = f"{directory}/{self.names[-1]}"
        self.tail_handle = disk.open(path)
        try:
            lock_segment(disk, self.tail_handle, path)
            self.open_segment(0)
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        buffer_free(&self.window)
        buffer_free(&self.building)

    def __iter__(self):
        return self

    def __next__(self):
        cdef Run run
        cdef Scan scan
        while True:
            if self.pending and (self.ended or self.pending[0].last_index <= self.commit):
                run = self.pending.popleft()
                self.yielded_term = run.term
                return run
            if self.ended:
                raise StopIteration
            with nogil:
                scan = self.scan()
            if scan == SCAN_RUN_FULL:
                self.close_run()
            elif scan == SCAN_OVERRIDE:
                self.override()
            elif scan == SCAN_FILE_END and self.segment < len(self.names) - 1:
                self.open_segment(self.segment + 1)
            elif scan == SCAN_FILE_END or scan == SCAN_BAD_FRAME:
                self.end()
            elif scan == SCAN_DISK_FAILED:
                raise DiskError("read", self.path, -self.failed)
            else:
                raise self.corrupt(self.reason.decode())

    @property
    def path(self):
        """The segment being read."""
        return f"{self.directory}/{self.names[self.segment]}"

    @property
    def sequence(self):
        """The sequence number of the segment being read."""
        return int(self.names[self.segment][:16], 16)

    def close(self):
        """Give up reading and the lock."""
        self.leave_segment()
        if self.tail_handle >= 0:
            self.disk.close(self.tail_handle)
        self.tail_handle = -1

    def detach(self):
        """The locked handle of the last segment, for whoever appends to it from now on."""
        assert self.ended, "the log was not read to its end"
        handle = self.tail_handle
        self.handle = self.tail_handle = -1
        return handle

    cdef leave_segment(self):
        if self.handle >= 0 and self.handle != self.tail_handle:
            self.disk.close(self.handle)
        self.handle = -1

    cdef open_segment(self, Py_ssize_t segment):
        """Read on in segment number `segment` of `names`; the last one is open already."""
        self.leave_segment()
        self.segment = segment
        last = segment == len(self.names) - 1
        self.handle = self.tail_handle if last else self.disk.open(self.path)
        self.file_size = self.disk.size(self.handle, self.path)
        self.offset = self.records = 0
        self.window.size = self.window_offset = 0

    # --- the scan: no GIL, no Python object ---------------------------------------------------

    cdef Scan scan(self) except SCAN_RAISED nogil:
        """Take records until something needs the GIL."""
        cdef Scan result = SCAN_ON
        while result == SCAN_ON:
            result = self.scan_record()
        return result

    cdef Scan scan_record(self) except SCAN_RAISED nogil:
        """Take the record at `offset`; the position moves on only when that succeeded."""
        cdef Record record
        cdef Scan result
        cdef uint64_t size = 0
        cdef uint64_t total = 0
        cdef uint64_t word
        cdef uint32_t crc = self.crc
        cdef const uint8_t *frame
        if self.file_size - self.offset < FRAME_HEADER_SIZE:
            return SCAN_FILE_END
        frame = self.view(FRAME_HEADER_SIZE)
        if frame == NULL:
            return SCAN_DISK_FAILED
        word = load_le64(frame)
        if word == 0:
            return SCAN_FILE_END
        if not parse_frame(word, &size, &total) or total > self.file_size - self.offset:
            return SCAN_BAD_FRAME
        frame = self.view(total)
        if frame == NULL:
            return SCAN_DISK_FAILED
        if not parse_record(frame + FRAME_HEADER_SIZE, size, &record):
            return SCAN_BAD_FRAME
        if record.type != RECORD_CRC:
            self.crc = crc32c(crc, record.data.data, record.data.size)
            if self.crc != record.crc:
                self.crc = crc
                return SCAN_BAD_FRAME
        result = self.take_record(&record)
        if result != SCAN_ON:
            self.crc = crc
            return result
        self.offset += total
        self.records += 1
        return SCAN_ON

    cdef const uint8_t *view(self, uint64_t size) except? NULL nogil:
        """`size` bytes of the segment from `offset` on; the caller checked that it has them."""
        cdef uint64_t skip = self.offset - self.window_offset
        cdef uint64_t wanted
        if skip + size <= self.window.size:
            return self.window.data + skip
        wanted = min(max(size, <uint64_t>READ_BYTES), self.file_size - self.offset)
        self.window.size = 0
        self.window_offset = self.offset
        buffer_reserve(&self.window, wanted)
        self.failed = self.disk.file_read(self.handle, self.window.data, wanted, self.offset)
        if self.failed >= 0 and <uint64_t>self.failed < size:
            self.failed = -EIO
        if self.failed < 0:
            return NULL
        self.window.size = self.failed
        return self.window.data

    cdef Scan refuse(self, const char *reason) noexcept nogil:
        self.reason = reason
        return SCAN_REFUSED

    cdef Scan take_record(self, Record *record) except SCAN_RAISED nogil:
        """Do what the record says; it is intact."""
        cdef Triple triple
        if (self.records == 0) != (record.type == RECORD_CRC):
            return self.refuse("a segment begins with one crc record and holds no other")
        if (self.records == 1) and record.type != RECORD_METADATA:
            return self.refuse("the second record of a segment is not its metadata")
        if record.type == RECORD_ENTRY:
            return self.take_entry(record)
        if record.type == RECORD_STATE:
            return self.take_state(record)
        if record.type == RECORD_CRC:
            if record.data.size or (self.metadata is not None and record.crc != self.crc):
                return self.refuse("the segment's first crc does not continue the one before")
            self.crc = record.crc
            return SCAN_ON
        if not parse_triple(record.data, 2, &triple):
            return self.refuse("a malformed metadata or snapshot record")
        with gil:
            if record.type == RECORD_SNAPSHOT:
                if triple.first == self.start_index and triple.second != self.start_term:
                    if not self.finds_term or self.start_term:
                        return self.refuse("the snapshot's record has another term")
                    self.set_start_term(triple.second)
                self.snapshots.append((triple.first, triple.second))
                return SCAN_ON
            metadata = record.data.data[:record.data.size]
            if self.metadata is not None and metadata != self.metadata:
                return self.refuse("the metadata is not that of the segment's beginning")
            self.metadata = metadata
        return SCAN_ON

    cdef Scan take_state(self, Record *record) noexcept nogil:
        """A HardState: what it commits can no longer be overridden."""
        cdef Triple state
        if not parse_triple(record.data, 3, &state) or state.first == 0:
            return self.refuse("a malformed hard state")
        if state.first < self.term or state.third < self.commit:
            return self.refuse("a hard state whose term or commit index goes back")
        # A segment that begins inside a batch repeats the state before that batch.
        if (self.records == 2 and state.first == self.term and state.second == self.vote
                and state.third == self.commit):
            return SCAN_ON
        if state.first < self.last_term and self.last_index > self.start_index:
            return self.refuse("a hard state whose term is less than the last entry's")
        self.term = state.first
        self.vote = state.second
        self.commit = state.third
        return SCAN_ON

    cdef void set_start_term(self, uint64_t term) noexcept nogil:
        """The term of the entry at `start_index` is known."""
        self.start_term = self.last_term = self.yielded_term = term

    cdef Scan take_entry(self, Record *record) except SCAN_RAISED nogil:
        """An entry: skipped, the next one, one that overrides, or wrong."""
        cdef EntryFields entry
        if not parse_entry(record.data, &entry) or entry.term == 0 or entry.index == 0:
            return self.refuse("a malformed entry")
        if entry.index <= self.last_index:
            if entry.index <= self.start_index and self.last_index == self.start_index:
                if entry.index == self.start_index and self.finds_term:
                    self.set_start_term(entry.term)
                return SCAN_ON
            if entry.index <= self.commit:
                return self.refuse("an entry that overrides a committed one")
            return SCAN_OVERRIDE
        if entry.index != self.last_index + 1:
            return self.refuse("an entry whose index does not follow the one before")
        if entry.term < self.last_term:
            return self.refuse("an entry whose term is less than that of the one before")
        return self.place_entry(&entry)

    cdef Scan place_entry(self, EntryFields *entry) except SCAN_RAISED nogil:
        """Add the next entry to the run that is being gathered."""
        cdef bint conf_change = entry.type != ENTRY_NORMAL
        cdef size_t wanted = ENTRY_HEADER_SIZE + entry.data.size
        cdef uint8_t *at
        if self.building_count and (
                conf_change or self.building_has_conf_change
                or entry.term != self.building_term or self.building.size + wanted > RUN_BYTES):
            return SCAN_RUN_FULL
        if entry.data.size >> 32:
            return self.refuse("an entry of more than 4 GiB")
        buffer_reserve(&self.building, wanted)
        at = self.building.data + self.building.size
        store_le32(at, <uint32_t>entry.data.size)
        store_le32(at + 4, <uint32_t>entry.type)
        if entry.data.size:
            memcpy(at + ENTRY_HEADER_SIZE, entry.data.data, entry.data.size)
        self.building.size += wanted
        self.building_count += 1
        self.building_term = self.last_term = entry.term
        self.building_has_conf_change = conf_change
        self.last_index = entry.index
        self.last_is_empty_v2 = entry.type == 2 and entry.data.size == 0
        return SCAN_ON

    # --- what needs the GIL -------------------------------------------------------------------

    cdef close_run(self):
        """Move the gathered entries to the pending runs."""
        cdef Run run
        if self.building_count == 0:
            return
        run = Run()
        run.entries = self.building
        run.count = self.building_count
        run.has_conf_change = self.building_has_conf_change
        run.assign(self.last_index - self.building_count + 1, self.building_term)
        self.pending.append(run)
        self.building.data = NULL
        self.building.size = self.building.capacity = 0
        self.building_count = 0
        self.building_has_conf_change = False

    cdef override(self):
        """The record at `offset` overrides from its index on: drop what it ends."""
        cdef Record record
        cdef EntryFields entry
        cdef uint64_t size = 0
        cdef uint64_t total = 0
        cdef Run run
        cdef const uint8_t *frame = self.view(FRAME_HEADER_SIZE)
        parse_frame(load_le64(frame), &size, &total)
        parse_record(frame + FRAME_HEADER_SIZE, size, &record)
        parse_entry(record.data, &entry)
        self.close_run()
        for run in self.pending:
            # Raft replaces an entry only by one of another term. Changes of members may come from
            # etcd's --force-new-cluster, which writes them over what it discards.
            if (run.first_index <= entry.index <= run.last_index and run.term == entry.term
                    and entry.type != ENTRY_CONF_CHANGE):
                raise self.corrupt(f"entry {entry.index} of term {entry.term} comes twice")
        self.truncate(max(entry.index - 1, self.start_index))

    cdef truncate(self, uint64_t index):
        """Drop the pending entries after `index`."""
        cdef Run run
        while self.pending and self.pending[-1].last_index > index:
            run = self.pending.pop()
            if run.first_index <= index:
                self.pending.append(piece(run, 0, index - run.first_index + 1))
        self.last_index = index
        self.last_term = self.pending[-1].term if self.pending else self.yielded_term

    cdef end(self):
        """The last good record was read: judge what follows, cut what is torn, and end."""
        cdef Run run
        cdef bytes torn
        if self.segment < len(self.names) - 1:
            raise self.corrupt("a damaged record in a segment that is not the last")
        torn = b"" if self.rest_is_zero() else self.judge_rest()
        reason = self.contradiction()
        if reason is not None:
            raise self.corrupt(reason)
        if torn:
            self.cut(torn)
        self.close_run()
        self.ended = True
        for at, run in enumerate(self.pending):
            if run.first_index <= self.commit < run.last_index:
                count = self.commit - run.first_index + 1
                self.pending[at] = piece(run, 0, count)
                self.pending.insert(at + 1, piece(run, count, run.count - count))
                break

    cdef corrupt(self, reason):
        """The refusal of the record at `offset`."""
        return WalCorruptError(self.path, self.offset, reason)

    cdef contradiction(self):
        """Why the log as read can't be all of it, or None."""
        if self.records < 2:
            return "the segment's head is missing or damaged"
        if self.finds_term and self.start_term == 0:
            return f"entry {self.start_index}, the last that the backend file holds, is missing"
        if not self.finds_term and (self.start_index, self.start_term) not in self.snapshots:
            return f"no record of the snapshot at index {self.start_index}"
        if self.commit > self.last_index:
            return f"entry {self.commit} was committed but the log ends at {self.last_index}"
        if self.last_is_empty_v2 and self.last_term > self.term:
            return "the last entry has a term that no hard state has"
        return None

    cdef bint rest_is_zero(self) except -1:
        """Whether nothing but zeros follows `offset`; reads piece by piece."""
        cdef uint64_t at = self.offset
        cdef int64_t got = 0
        cdef bint zero = True
        self.window.size = 0
        buffer_reserve(&self.window, READ_BYTES)
        with nogil:
            while zero and at < self.file_size:
                got = self.disk.file_read(self.handle, self.window.data, READ_BYTES, at)
                if got <= 0:
                    break
                zero = is_zero(self.window.data, got)
                at += got
        checked(got, "read", self.path)
        return zero

    cdef bytes judge_rest(self):
        """The torn bytes, from `offset` to the last that is not zero; refuses damage."""
        cdef uint8_t[::1] rest = bytearray(
            self.disk.read(self.handle, self.file_size - self.offset, self.offset, self.path))
        cdef Tail tail = Tail(
            &rest[0], rest.shape[0], self.offset, self.crc, self.last_index + 1, NULL)
        cdef Verdict verdict
        with nogil:
            verdict = judge_tail(&tail)
        if verdict == TAIL_CORRUPT:
            raise self.corrupt(tail.reason.decode())
        return bytes(rest).rstrip(b"\0")

    cdef cut(self, bytes torn):
        """Keep the torn bytes in a file of their own, durably, and put zeros in their place."""
        path = f"{self.path}.{self.offset:016x}.broken"
        handle = self.disk.open(path, True)
        try:
            self.disk.write(handle, torn, 0, path)
            self.disk.datasync(handle, path)
        finally:
            self.disk.close(handle)
        self.disk.sync_directory(self.directory)
        self.disk.fill(self.handle, self.offset, len(torn), self.path)
        self.disk.datasync(self.handle, self.path)
        self.torn_bytes = len(torn)
