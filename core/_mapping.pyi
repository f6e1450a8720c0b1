from ._disk import Disk

class Mapping:
    reach: int
    path: str
    def __init__(self, disk: Disk, handle: int, path: str, reach: int = 0) -> None: ...
