from ._arena import Arena
from ._mapping import Mapping

class Values:
    blocks: int
    mappings: list[Mapping]
    in_place: bool
    def __init__(self, arena: Arena) -> None: ...
    def add_mapping(self, mapping: Mapping) -> bool: ...
    def drop_mappings(self) -> list[Mapping]: ...
