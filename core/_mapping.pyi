from ._disk import Disk

class Mapping:
    reach: int
    is_live: bool
    path: str
    def __init__(self, disk: Disk, handle: int, path: str, reach: int = 0) -> None: ...
    def close(self) -> None: ...
