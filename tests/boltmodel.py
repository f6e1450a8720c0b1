"""bbolt files, slowly: decoded without any check, and made page by page as a test wants them.

Written from the format alone, as the twin of core/_bolt.pyx and core/_boltwriter.pyx.
"""

from __future__ import annotations

import struct

Content = dict[bytes, tuple[int, list[tuple[bytes, bytes]]]]  # name → sequence, pairs

BRANCH, LEAF, META, FREELIST = 1, 2, 4, 0x10
NO_FREELIST = (1 << 64) - 1
MAGIC = 0xED0CDAED


def fnv(data: bytes) -> int:
    total = 0xCBF29CE484222325
    for byte in data:
        total = (total ^ byte) * 0x100000001B3 % (1 << 64)
    return total


class Model:
    """A file's content, and where in it a changed bit is not to be seen by its form."""

    def __init__(self, data: bytes, *, softness: bool = False) -> None:
        self.data = data
        self.softness = softness
        self.page_size = int.from_bytes(data[24:28], "little")
        # Bytes of keys, values and sequences, and the sizes of a page's last element.
        # (told with `softness`).
        self.soft: set[int] = set()
        self.content: Content = {}
        first, second = (struct.unpack_from("<6Q", data, at * self.page_size + 32) for at in (0, 1))
        root = max(first, second, key=lambda meta: meta[4])[0]
        for key, at, size in self.elements(root * self.page_size):
            self.content[key] = self.bucket(at, size)

    def elements(self, page: int, *, inline: bool = False) -> list[tuple[bytes, int, int]]:
        """Key, offset and size of the value of everything below the page at that offset."""
        flags, count = struct.unpack_from("<HH", self.data, page + 8)
        found = []
        for at in range(page + 16, page + 16 + 16 * count, 16):
            if flags == BRANCH:
                child = int.from_bytes(self.data[at + 8 : at + 16], "little")
                found += self.elements(child * self.page_size)
                continue
            kind, position, key_size, value_size = struct.unpack_from("<4I", self.data, at)
            value = at + position + key_size
            self.soften(at + position, value + (0 if kind else value_size))
            found.append((self.data[at + position : value], value, value_size))
            if at == page + 16 * count and not inline:
                self.soften(at + 8, at + 16)
        return found

    def soften(self, start: int, end: int) -> None:
        if self.softness:
            self.soft.update(range(start, end))

    def bucket(self, at: int, size: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        root, sequence = struct.unpack_from("<QQ", self.data, at)
        self.soften(at + 8, at + 16)
        inside = (
            self.elements(root * self.page_size) if root else self.elements(at + 16, inline=True)
        )
        return sequence, [(key, self.data[value : value + n]) for key, value, n in inside]


class Maker:
    """A file made by hand; a page that nobody made is zeros."""

    def __init__(self, page_size: int = 512) -> None:
        self.page_size = page_size
        self.pages: dict[int, bytes] = {}

    def place(self, id: int, flags: int, count: int, body: bytes) -> None:
        overflow = max(0, (15 + len(body)) // self.page_size)
        self.pages[id] = struct.pack("<QHHI", id, flags, count, overflow) + body

    def leaf(self, id: int, pairs: list[tuple[bytes, bytes]], flags: int = 0) -> None:
        self.place(id, LEAF, len(pairs), leaf_body(pairs, flags))

    def branch(self, id: int, children: list[tuple[bytes, int]]) -> None:
        position, elements = 16 * len(children), b""
        for key, child in children:
            elements += struct.pack("<IIQ", position, len(key), child)
            position += len(key) - 16
        self.place(id, BRANCH, len(children), elements + b"".join(key for key, _ in children))

    def freelist(self, id: int, free: list[int], *, inside: bool = False) -> None:
        ids = [len(free), *free] if inside else free
        body = struct.pack(f"<{len(ids)}Q", *ids)
        self.place(id, FREELIST, 0xFFFF if inside else len(free), body)

    def meta(
        self,
        id: int,
        root: int,
        high_water: int,
        *,
        transaction: int,
        freelist: int = NO_FREELIST,
        page_size: int = 0,
    ) -> None:
        size = page_size or self.page_size
        summed = struct.pack("<4I5Q", MAGIC, 2, size, 0, root, 0, freelist, high_water, transaction)
        self.place(id, META, 0, summed + fnv(summed).to_bytes(8, "little"))

    def metas(self, root: int, high_water: int, freelist: int = NO_FREELIST) -> None:
        for id in (0, 1):
            self.meta(id, root, high_water, transaction=id + 6, freelist=freelist)

    def file(self, pages: int) -> bytes:
        data = bytearray(pages * self.page_size)
        for id, page in self.pages.items():
            data[id * self.page_size : id * self.page_size + len(page)] = page
        return bytes(data)


def leaf_body(pairs: list[tuple[bytes, bytes]], flags: int = 0) -> bytes:
    position, elements, data = 16 * len(pairs), b"", b""
    for key, value in pairs:
        elements += struct.pack("<4I", flags, position, len(key), len(value))
        position += len(key) + len(value) - 16
        data += key + value
    return elements + data


def bucket_at(root: int, sequence: int = 0) -> bytes:
    """The value of a bucket whose root is a page."""
    return struct.pack("<QQ", root, sequence)


def inline_bucket(pairs: list[tuple[bytes, bytes]], sequence: int = 0) -> bytes:
    """The value of a bucket that lies inline."""
    page = struct.pack("<QHHI", 0, LEAF, len(pairs), 0)
    return bucket_at(0, sequence) + page + leaf_body(pairs)
