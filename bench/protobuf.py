"""As much of protobuf as the benchmark needs outside the load generator."""


def encode_varint(value: int) -> bytes:
    """A number of 0 or more in protobuf's form."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at this place and the place after it; raises IndexError when cut."""
    value = shift = 0
    while data[at] >= 0x80:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
    return value | data[at] << shift, at + 1


def last_field(message: bytes, number: int) -> int | bytes:
    """The last field of this number, 0 when there is none; ValueError on other wire types."""
    found: int | bytes = 0
    at = 0
    while at < len(message):
        tag, at = decode_varint(message, at)
        value: int | bytes
        value, at = decode_varint(message, at)
        if tag & 7 == 2:
            size = value
            value = message[at : at + size]
            at += size
        elif tag & 7 != 0:
            raise ValueError(f"wire type {tag & 7} at byte {at}")
        if tag >> 3 == number:
            found = value
    return found
