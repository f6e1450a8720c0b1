"""`core/errors.py` and `core/_errors.pxd` hold the same numbers, and the texts are etcd's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quorate.core.errors import BY_ID, EtcdError

PXD = Path(__file__).parent.parent / "core" / "_errors.pxd"
NUMBERS = dict(re.findall(r"^    (ERROR_[A-Z_]+) = (\d+)$", PXD.read_text(), re.M))


def constant(error: type[EtcdError]) -> str:
    """The name of the class in Cython: EmptyKeyError -> ERROR_EMPTY_KEY."""
    words = re.findall(r"[A-Z][a-z]*", error.__name__.removesuffix("Error"))
    return "ERROR_" + "_".join(words).upper()


def test_cython_has_the_same_numbers() -> None:
    python = {constant(error): str(number) for number, error in BY_ID.items()}
    assert {"ERROR_NONE": "0", **python} == NUMBERS


def test_numbers_are_unique_and_without_gap() -> None:
    classes = EtcdError.__subclasses__()
    assert sorted(error.id for error in classes) == list(range(1, len(classes) + 1))
    assert len(BY_ID) == len(classes)


@pytest.mark.parametrize("error", BY_ID.values(), ids=lambda error: error.__name__)
def test_an_error_says_its_text(error: type[EtcdError]) -> None:
    assert str(error()) == error.text
    assert error.__doc__ == f"`{error.text}`."
    assert error.text.startswith(("etcdserver: ", "grpc: ", "context ", "RangeStream "))
    assert error.code.value != 0


def test_no_two_errors_look_the_same_to_a_client() -> None:
    assert len({(error.code, error.text) for error in BY_ID.values()}) == len(BY_ID)
