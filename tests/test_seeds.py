"""Streams keep their numbers: they are part of what a seed means."""

import numpy as np
import pytest

from fedexperts.seeds import Stream, stream, torch_seed


@pytest.mark.parametrize(("name", "number"), [(Stream.BATCHES, 0), (Stream.SPLIT, 5), (Stream.HOLD_OUT, 26)])
def test_a_stream_is_its_key_its_number_and_what_follows(name: Stream, number: int) -> None:
    assert stream(name, 7).integers(2**62) == np.random.default_rng([7, number]).integers(2**62)
    assert stream(name, (7, 9), 3).integers(2**62) == np.random.default_rng([7, 9, number, 3]).integers(2**62)
    assert torch_seed(name, 7, 3) == int(np.random.default_rng([7, number, 3]).integers(2**62))


def test_no_number_is_used_twice() -> None:
    assert len(set(Stream)) == len(Stream.__members__) == 22
