# cython: language_level=3
"""One unary request to etcd and the check of its answer; no socket, no clock, no GIL.

The life of an exchange: `build` once (memory and the constant part of the body), then for each
request `begin` (which key), `feed` (bytes of the reply as they come), `end` (what is wrong with
the answer, or NULL).

What is checked:
- a write's revision is above every revision that was known when it left (order in real time);
- a linearizable read's revision is not below it; its key-value is the key asked for, not older than
  what was acknowledged when it left, and its value is byte for byte what was put;
- a list has as many key-values as limit and keyspace say, in order, the right `count` and `more`;
- a grant gives the lease id and the time to live that were asked for;
- a delete deletes the key if it is known to be there, which nobody else may change meanwhile;
- a txn that compared the right mod revision succeeded, with one response.

A reply is read field by field as its bytes come, so that a list of any size needs no more memory
here than its largest key-value.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from bench._keyspace cimport (
    DIGITS,
    LEASE_FIRST,
    Keys,
    acknowledge,
    forget,
    is_key,
    is_value,
    write_number,
    write_value,
)
from bench._protobuf cimport (
    GRPC_PREFIX,
    Field,
    number_in,
    read_field,
    size_in_prefix,
    varint_size,
    write_prefix,
    write_tag,
    write_varint,
)


# -- the request

cdef bint exchange_build(Exchange *exchange, Work *work) noexcept nogil:
    """Allocate the body and write what is the same in every request; False when memory is out."""
    cdef Keys *keys = work.keys
    cdef uint8_t *at
    exchange.work = work
    exchange.body_capacity = GRPC_PREFIX + 256 + work.message_size
    if keys != NULL:
        exchange.body_capacity += 4 * keys.key_size + keys.value_size
    exchange.body = <uint8_t *>realloc(exchange.body, exchange.body_capacity)
    if exchange.body == NULL:
        return False
    at = exchange.body + GRPC_PREFIX
    if work.kind == CALL:
        memcpy(at, work.message, work.message_size)
        finish_body(exchange, at + work.message_size)
    elif work.kind == PUT:
        at = write_key(exchange, at, 1)
        exchange.key_at = at - DIGITS - exchange.body
        at = write_varint(write_tag(at, 2, 2), keys.value_size)
        exchange.value_at = at - exchange.body
        at += keys.value_size
        exchange.lease_at = at - exchange.body
        finish_body(exchange, at)
    elif work.kind == GET or work.kind == LIST or work.kind == DELETE:
        at = write_key(exchange, at, 1)
        exchange.key_at = at - DIGITS - exchange.body
        finish_body(exchange, at if work.kind == DELETE else write_range_options(work, at))
    return True


cdef bint exchange_begin(Exchange *exchange, int64_t key) noexcept nogil:
    """Make the request for this key and forget the last reply; False when the body is too small."""
    cdef Work *work = exchange.work
    cdef Keys *keys = work.keys
    exchange.sent = exchange.carry_size = 0
    exchange.left = 0
    exchange.prefixed = exchange.more = exchange.succeeded = False
    exchange.status = -1
    exchange.revision = exchange.mod_revision = exchange.seen = exchange.count = 0
    exchange.responses = 0
    exchange.problem = NULL
    exchange.key = key
    if work.kind == CALL:
        return True
    if work.kind == GRANT:
        write_grant(exchange)
        return True
    exchange.highest = keys.highest
    exchange.known = keys.revisions[key]
    if work.kind == PUT or work.kind == TXN:
        keys.serial += 1
        exchange.serial = keys.serial
    if work.kind == TXN:
        exchange.expected = exchange.known
        write_txn(exchange)
    else:
        write_number(exchange.body + exchange.key_at, key)
        if work.kind == PUT:
            write_value(keys, exchange.body + exchange.value_at, key, exchange.serial)
        if work.leased:
            write_lease(exchange)
    return exchange.body_size <= exchange.body_capacity


cdef void exchange_free(Exchange *exchange) noexcept nogil:
    """Give back what the exchange owns."""
    free(exchange.body)
    free(exchange.carry)
    exchange.body = exchange.carry = NULL


cdef inline void finish_body(Exchange *exchange, uint8_t *end) noexcept nogil:
    """Write the gRPC prefix, now that the size is known."""
    cdef size_t size = end - exchange.body - GRPC_PREFIX
    write_prefix(exchange.body, size)
    exchange.body_size = size + GRPC_PREFIX


cdef inline uint8_t *write_key(Exchange *exchange, uint8_t *at, uint32_t number) noexcept nogil:
    """The field `number` with the key of this exchange."""
    cdef Keys *keys = exchange.work.keys
    at = write_varint(write_tag(at, number, 2), keys.key_size)
    memcpy(at, keys.prefix, keys.prefix_size)
    write_number(at + keys.prefix_size, exchange.key)
    return at + keys.key_size


cdef inline uint8_t *write_range_options(Work *work, uint8_t *at) noexcept nogil:
    """The fields of a RangeRequest that come after its key."""
    cdef Keys *keys = work.keys
    if work.kind == LIST:
        at = write_varint(write_tag(at, 2, 2), keys.prefix_size)
        memcpy(at, keys.prefix, keys.prefix_size)
        at[keys.prefix_size - 1] += 1
        at += keys.prefix_size
        if work.limit:
            at = write_varint(write_tag(at, 3, 0), work.limit)
    if work.serializable:
        at = write_varint(write_tag(at, 7, 0), 1)
    if work.keys_only:
        at = write_varint(write_tag(at, 8, 0), 1)
    if work.count_only:
        at = write_varint(write_tag(at, 9, 0), 1)
    return at


cdef void write_grant(Exchange *exchange) noexcept nogil:
    """LeaseGrantRequest: the time to live and the id that belongs to this number."""
    cdef uint8_t *at = exchange.body + GRPC_PREFIX
    at = write_varint(write_tag(at, 1, 0), exchange.work.ttl)
    finish_body(exchange, write_varint(write_tag(at, 2, 0), LEASE_FIRST + exchange.key))


cdef inline void write_lease(Exchange *exchange) noexcept nogil:
    """The last field of a PutRequest: the lease of this key."""
    cdef uint8_t *at = write_tag(exchange.body + exchange.lease_at, 3, 0)
    finish_body(exchange, write_varint(at, LEASE_FIRST + exchange.key))


cdef void write_txn(Exchange *exchange) noexcept nogil:
    """Compare MOD == expected; then put; else get: what Kubernetes sends for every update."""
    cdef Keys *keys = exchange.work.keys
    cdef size_t key_field = 1 + varint_size(keys.key_size) + keys.key_size
    cdef size_t value_field = 1 + varint_size(keys.value_size) + keys.value_size
    cdef size_t put = key_field + value_field
    cdef uint8_t *at = exchange.body + GRPC_PREFIX
    # Compare: target MOD = 2; result EQUAL is the default and is left out.
    at = write_varint(write_tag(at, 1, 2), 3 + key_field + varint_size(exchange.expected))
    at = write_varint(write_tag(at, 2, 0), 2)
    at = write_key(exchange, at, 3)
    at = write_varint(write_tag(at, 6, 0), exchange.expected)
    # success: one RequestOp with request_put = 2.
    at = write_varint(write_tag(at, 2, 2), 1 + varint_size(put) + put)
    at = write_varint(write_tag(at, 2, 2), put)
    at = write_key(exchange, at, 1)
    at = write_varint(write_tag(at, 2, 2), keys.value_size)
    write_value(keys, at, exchange.key, exchange.serial)
    at += keys.value_size
    # failure: one RequestOp with request_range = 1.
    at = write_varint(write_tag(at, 3, 2), 1 + varint_size(key_field) + key_field)
    at = write_varint(write_tag(at, 1, 2), key_field)
    finish_body(exchange, write_key(exchange, at, 1))


# -- the reply

cdef bint exchange_feed(Exchange *exchange, const uint8_t *data, size_t size) noexcept nogil:
    """Read what can be read and keep the rest; False when memory is out."""
    cdef size_t used
    if not exchange.work.check and exchange.work.kind != CALL:
        exchange.prefixed = True
        return True
    if exchange.carry_size == 0 and exchange.work.kind != CALL:
        used = consume(exchange, data, size)
        return used == size or keep(exchange, data + used, size - used)
    if not keep(exchange, data, size):
        return False
    used = consume(exchange, exchange.carry, exchange.carry_size)
    exchange.carry_size -= used
    memmove(exchange.carry, exchange.carry + used, exchange.carry_size)
    return True


cdef const char *exchange_end(Exchange *exchange) noexcept nogil:
    """The stream ended with status 0: what is wrong with the answer, or NULL; remembers writes."""
    cdef Work *work = exchange.work
    if exchange.problem != NULL or work.kind == CALL or not work.check:
        return exchange.problem
    if not exchange.prefixed or exchange.left or exchange.carry_size:
        return b"the reply is cut short"
    if work.kind == GRANT:
        return end_grant(exchange)
    if work.kind == PUT:
        if exchange.revision <= exchange.highest:
            return b"a put's revision is not above those acknowledged before it"
        acknowledge(work.keys, exchange.key, exchange.serial, exchange.revision)
        return NULL
    if work.kind == DELETE:
        return end_delete(exchange)
    if exchange.revision < exchange.highest and not work.serializable:
        return b"a read's revision is below those acknowledged before it"
    if work.kind == GET:
        return end_get(exchange)
    if work.kind == LIST:
        return end_list(exchange)
    return end_txn(exchange)


cdef const char *end_grant(Exchange *exchange) noexcept nogil:
    if exchange.count != LEASE_FIRST + exchange.key:
        return b"a grant gave another lease than was asked for"
    if exchange.seen != exchange.work.ttl:
        return b"a grant gave another time to live than was asked for"
    return NULL


cdef const char *end_delete(Exchange *exchange) noexcept nogil:
    cdef bint was_there = exchange.known != 0
    if exchange.count != was_there:
        return b"a delete's count is not that of the keys that were there"
    # What deletes nothing makes no revision.
    if exchange.revision < exchange.highest + was_there:
        return b"a delete's revision is not above those acknowledged before it"
    if was_there:
        forget(exchange.work.keys, exchange.key, exchange.revision)
    return NULL


cdef const char *end_get(Exchange *exchange) noexcept nogil:
    if exchange.known == 0 and exchange.seen == 0 and exchange.count == 0:
        return NULL
    if exchange.seen != 1 or exchange.count != 1 or exchange.more:
        return b"a get of one key did not give one key"
    if exchange.mod_revision < exchange.known and not exchange.work.serializable:
        return b"a get gave an older revision of the key than was acknowledged before it"
    return NULL


cdef const char *end_list(Exchange *exchange) noexcept nogil:
    cdef Work *work = exchange.work
    cdef int64_t total = work.keys.count - exchange.key
    cdef int64_t wanted = total
    if work.limit and work.limit < total:
        wanted = work.limit
    if exchange.count != total:
        return b"a list's count is not the number of keys"
    if work.count_only:
        if exchange.seen:
            return b"a count gave keys"
        return NULL
    if exchange.seen != wanted:
        return b"a list has not as many keys as it should"
    if exchange.more != (wanted < total):
        return b"a list's `more` is wrong"
    return NULL


cdef const char *end_txn(Exchange *exchange) noexcept nogil:
    if exchange.responses != 1:
        return b"a txn did not give one response"
    if exchange.succeeded:
        if exchange.revision <= exchange.highest:
            return b"a txn's revision is not above those acknowledged before it"
        acknowledge(exchange.work.keys, exchange.key, exchange.serial, exchange.revision)
        return NULL
    return b"a txn that compared the newest mod revision did not succeed"


cdef bint keep(Exchange *exchange, const uint8_t *data, size_t size) noexcept nogil:
    """Append to the carry; False when memory is out."""
    cdef size_t wanted = exchange.carry_size + size
    cdef size_t capacity = exchange.carry_capacity or 1024
    cdef uint8_t *grown
    if wanted > exchange.carry_capacity:
        while capacity < wanted:
            capacity *= 2
        grown = <uint8_t *>realloc(exchange.carry, capacity)
        if grown == NULL:
            return False
        exchange.carry = grown
        exchange.carry_capacity = capacity
    memcpy(exchange.carry + exchange.carry_size, data, size)
    exchange.carry_size = wanted
    return True


cdef size_t consume(Exchange *exchange, const uint8_t *data, size_t size) noexcept nogil:
    """Read the prefix and all whole fields; how many bytes that were."""
    cdef const uint8_t *at = data
    cdef const uint8_t *end = data + size
    cdef const uint8_t *next
    cdef Field field
    if exchange.work.kind == CALL or exchange.problem != NULL:
        return 0 if exchange.problem == NULL else size
    if not exchange.prefixed:
        if size < GRPC_PREFIX:
            return 0
        exchange.left = size_in_prefix(data)
        exchange.prefixed = True
        at += GRPC_PREFIX
        if data[0] != 0:
            exchange.problem = b"the reply is compressed"
    if <uint64_t>(end - at) > exchange.left:
        exchange.problem = b"more than one message came back"
    while exchange.problem == NULL and exchange.left:
        next = read_field(at, end, &field)
        if next == NULL:
            if exchange.left <= <uint64_t>(end - at):
                exchange.problem = b"the reply is malformed"
            break
        exchange.left -= next - at
        at = next
        read_reply_field(exchange, &field)
    return size if exchange.problem != NULL else at - data


cdef void read_reply_field(Exchange *exchange, const Field *field) noexcept nogil:
    """One top-level field of the reply; field 1 is the header in all of them."""
    cdef Kind kind = exchange.work.kind
    if field.number == 1:
        exchange.revision = number_in(field, 3)
    elif kind == GRANT:
        if field.number == 2:
            exchange.count = <int64_t>field.value
        elif field.number == 3:
            exchange.seen = <int64_t>field.value
    elif kind == TXN:
        if field.number == 2:
            exchange.succeeded = field.value != 0
        elif field.number == 3:
            exchange.responses += 1
    elif kind == DELETE:
        if field.number == 2:
            exchange.count = <int64_t>field.value
    elif kind == GET or kind == LIST:
        if field.number == 2:
            read_key_value(exchange, field)
        elif field.number == 3:
            exchange.more = field.value != 0
        elif field.number == 4:
            exchange.count = <int64_t>field.value


cdef void read_key_value(Exchange *exchange, const Field *message) noexcept nogil:
    """One key-value of a range: the right key, with the value that was put."""
    cdef Work *work = exchange.work
    cdef const uint8_t *at = message.data
    cdef const uint8_t *end
    cdef int64_t number = exchange.key + exchange.seen
    cdef Field field, key, value
    key.value = value.value = 0
    key.data = value.data = message.data
    if message.wire != 2:
        exchange.problem = b"a key-value is malformed"
        return
    end = at + message.value
    exchange.mod_revision = 0
    while at != NULL and at < end:
        at = read_field(at, end, &field)
        if at == NULL:
            exchange.problem = b"a key-value is malformed"
            return
        if field.number == 1 and field.wire == 2:
            key = field
        elif field.number == 3:
            exchange.mod_revision = <int64_t>field.value
        elif field.number == 5 and field.wire == 2:
            value = field
    exchange.seen += 1
    if number >= work.keys.count or not is_key(work.keys, number, key.data, key.value):
        exchange.problem = b"a key came back that was not asked for"
    elif not 0 < exchange.mod_revision <= exchange.revision:
        exchange.problem = b"a mod revision is above the reply's revision"
    elif work.keys_only:
        if value.value:
            exchange.problem = b"a value came back that was not asked for"
    elif not is_value(work.keys, number, exchange.mod_revision, value.data, value.value):
        exchange.problem = b"a value is not what was put"
