"""What one run of the load generator gives back."""

from dataclasses import dataclass, field

from bench._histogram import Histogram


@dataclass(frozen=True)
class Outcome:
    """Counts and times of one run; `completed`, `elapsed`, `latency` are of the measured window."""

    completed: int
    elapsed: float
    """Seconds of the measured window."""
    succeeded: int
    """Right answers of the whole run, warm-up included."""
    failed: int
    """Requests that ended with another status than 0, or with their connection."""
    wrong: int
    """Answers with status 0 that are not what etcd would say."""
    unfinished: int
    """Requests without an answer when patience ended, and due ones that were never sent."""
    problem: str
    """The first failure or wrong answer, in words; empty when there was none."""
    cpu: float
    """Seconds of CPU that the generator's thread used in the whole run."""
    latency: Histogram = field(repr=False)
    """Nanoseconds from when a request was due to when its stream closed."""
    unimplemented: bool = False
    """Whether the server said that it does not have the method."""

    @property
    def per_second(self) -> float:
        """Right answers per second of the measured window."""
        return self.completed / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def good(self) -> bool:
        """Whether every request was answered, and rightly."""
        return not (self.failed or self.wrong or self.unfinished)

    def microseconds(self, percent: float) -> float:
        """A percentile of the latency."""
        return self.latency.percentile(percent) / 1000


@dataclass(frozen=True)
class Received(Outcome):
    """What came of one stream that was read to its end, or left before."""

    size: int = 0
    """Bytes of what it carries."""

    @property
    def mib_per_second(self) -> float:
        """How fast it was."""
        return self.size / 2**20 / self.elapsed if self.elapsed > 0 else 0.0


@dataclass(frozen=True)
class Delivery(Outcome):
    """What came to watchers: `succeeded` and `completed` count events, `unfinished` missing ones.

    Latency is from when a write was due to when its event was there, of every watcher.
    """

    first_event: float = 0.0
    """When the first event of the run came, on the monotonic clock; 0.0 when none did."""
    last_event: float = 0.0
    """When the last one came."""
    writes: Outcome | None = None
    """What came of the writer that ran in the same thread."""
