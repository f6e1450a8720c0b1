from quorate.core._eventring import EventRing
from quorate.core._mvcc import Store
from quorate.core._port import Port

class Events:
    copied: int
    caught_up: int
    ring: EventRing
    def __init__(self, store: Store, ring: EventRing, ports: list[Port | None]) -> None: ...
    def publish(self) -> None: ...

class Follow: ...
