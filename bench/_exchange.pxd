# cython: language_level=3
"""One request and the check of its answer: the C half."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from bench._keyspace cimport Keys

cdef enum Kind:
    PUT = 0
    GET = 1             # one key
    LIST = 2            # from a key to the end of the prefix
    TXN = 3             # Kubernetes' update: compare mod revision, then put, else get
    CALL = 4            # any bytes; the reply is kept as it is
    GRANT = 5           # a lease with an id of our choice
    DELETE = 6          # one key


cdef struct Work:
    # What all requests of one load have in common.
    Kind kind
    Keys *keys
    bint check                  # False: only statuses count (a server that merely echoes)
    bint serializable
    bint count_only
    bint keys_only
    int64_t limit               # of a LIST; 0 is no limit
    bint leased                 # each PUT is attached to the lease of its key's number
    int64_t ttl                 # seconds; of a GRANT
    const uint8_t *message      # of a CALL; not owned
    size_t message_size


cdef struct Exchange:
    # -- the request
    Work *work
    int64_t key                 # number of the key, or of the first one of a list
    uint64_t serial             # of the write, 0 for a read
    int64_t expected            # TXN: the mod revision that it compares with
    int64_t highest             # the highest revision known when the request left
    int64_t known               # the mod revision of `key` known when the request left
    uint8_t *body               # owned; the gRPC message with its prefix
    size_t body_size
    size_t body_capacity
    size_t key_at               # where in the body the key's digits are (PUT, GET, LIST)
    size_t value_at             # where in the body the value is (PUT)
    size_t lease_at             # where in the body the lease goes (PUT)
    size_t sent                 # bytes of the body handed to HTTP/2
    # -- the reply
    uint8_t *carry              # owned; bytes of a message that could not be read yet
    size_t carry_size
    size_t carry_capacity
    uint64_t left               # bytes of the message still to read
    bint prefixed               # the gRPC prefix was read
    int status                  # grpc-status; -1 until it came
    int64_t revision            # the header's
    int64_t mod_revision        # of the last key-value read
    int64_t seen                # key-values so far; of a GRANT: the time to live
    int64_t count               # of a GRANT: the lease's id; of a DELETE: the keys that it deleted
    bint more
    bint succeeded
    int64_t responses           # of a TXN
    const char *problem         # why the answer is wrong; NULL while it is right


cdef bint exchange_build(Exchange *exchange, Work *work) noexcept nogil
cdef bint exchange_begin(Exchange *exchange, int64_t key) noexcept nogil
cdef bint exchange_feed(Exchange *exchange, const uint8_t *data, size_t size) noexcept nogil
cdef const char *exchange_end(Exchange *exchange) noexcept nogil
cdef void exchange_free(Exchange *exchange) noexcept nogil
