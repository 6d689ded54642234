"""Rows of one key group always go to the same task, and keep their order on the way."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataflow.kernels.exchange import split_by_group


@given(st.lists(st.integers(0, 2**64 - 1)), st.integers(1, 128))
def test_each_owner_gets_its_key_groups_in_order(hashes: list[int], parts: int) -> None:
    order, bounds = split_by_group(np.array(hashes, dtype=np.uint64), parts)
    owners = [(one >> 57) * parts >> 7 for one in hashes]
    assert bounds == [sum(owner < part for owner in owners) for part in range(parts + 1)]
    assert order.tolist() == sorted(range(len(hashes)), key=lambda row: owners[row])  # sorted is stable
