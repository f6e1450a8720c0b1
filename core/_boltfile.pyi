from quorate.core._bolt import Bolt, Cursor
from quorate.core._disk import Disk

class OpenFile:
    disk: Disk
    path: str
    handle: int
    def __init__(self, disk: Disk, path: str) -> None: ...
    def bolt(self, page_size: int, other: int = -1) -> Bolt: ...

class FileCursor(Cursor):
    def __init__(self, file: OpenFile, bolt: Bolt) -> None: ...
