"""core/_ring: records arrive whole, in order, and a lying neighbour is noticed, never followed."""

import random

import pytest

from quorate.core._ring import Doorbell, Ring

CAPACITY = 4096
HEADER = 4096  # bytes of the shared counters before the data
HEAD, TAIL = 0, 64  # offsets of the producer's and the consumer's counter


def pair() -> tuple[Ring, Ring]:
    producer = Ring(CAPACITY)
    return producer, producer.other_side()


def test_records_arrive_in_order_over_many_wraps() -> None:
    producer, consumer = pair()
    rng = random.Random(7)
    waiting: list[bytes] = []
    for step in range(20_000):
        record = bytes([step % 256]) * rng.randrange(0, 900)
        if rng.random() < 0.6 and producer.push(record):
            waiting.append(record)
        elif waiting:
            assert consumer.pull() == waiting.pop(0), step
        producer.check()
        consumer.check()
    while waiting:
        assert consumer.pull() == waiting.pop(0)
    assert consumer.pull() is None


def test_a_full_ring_refuses_and_takes_up_again() -> None:
    producer, consumer = pair()
    pushed = 0
    while producer.push(b"x" * 100):
        pushed += 1
    assert pushed == CAPACITY // (8 + 104)
    assert consumer.pull() == b"x" * 100
    assert producer.push(b"x" * 100)
    assert not producer.push(b"x" * 100)


def test_the_largest_record_fills_the_ring() -> None:
    producer, consumer = pair()
    assert not producer.push(b"y" * (CAPACITY - 7))
    assert producer.push(b"y" * (CAPACITY - 8))
    assert consumer.pull() == b"y" * (CAPACITY - 8)


@pytest.mark.parametrize(
    ("offset", "lie"),
    [
        (HEADER, (1 << 20).to_bytes(4, "little")),  # a length beyond what was published
        (HEADER, (0xFFFFFFFF).to_bytes(4, "little")),  # a length that would overflow
        (HEADER + 4, (7).to_bytes(4, "little")),  # a sequence out of order
        (HEAD, (1 << 40).to_bytes(8, "little")),  # more published than fits
        (HEAD, (4).to_bytes(8, "little")),  # less than a frame
    ],
)
def test_a_lying_producer_is_noticed(offset: int, lie: bytes) -> None:
    producer, consumer = pair()
    producer.push(b"good")
    producer.poke(offset, lie)
    with pytest.raises(ValueError, match="corrupt"):
        consumer.pull()


@pytest.mark.parametrize("tail", [1 << 40, 2**64 - 8, 2**63])
def test_a_lying_consumer_only_starves_itself(tail: int) -> None:
    producer, _ = pair()
    producer.poke(TAIL, tail.to_bytes(8, "little"))
    while producer.push(b"z" * 1000):
        pass
    assert not producer.push(b"z" * CAPACITY)


def test_random_damage_never_leaves_the_mapping() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(300):
        producer, consumer = pair()
        for _ in range(rng.randrange(1, 5)):
            producer.push(rng.randbytes(rng.randrange(0, 1500)))
        producer.poke(rng.choice([HEAD, TAIL, HEADER + rng.randrange(64)]), rng.randbytes(8))
        try:
            for _ in range(10):
                record = consumer.pull()
                assert record is None or len(record) <= CAPACITY, f"seed {seed}"
                producer.push(b"more")
        except ValueError:
            continue


def test_a_doorbell_rings_only_for_a_sleeper() -> None:
    bell = Doorbell()
    bell.wake()
    assert not bell.wait(0)
    bell.sleep()
    bell.wake()
    assert bell.wait(0)
    bell.rise()
    assert not bell.wait(0)


def test_a_command_reaches_its_owner_awake_or_asleep() -> None:
    bell = Doorbell()
    assert bell.command == 0
    bell.command = 2
    assert bell.command == 2
    assert bell.wait(0)
