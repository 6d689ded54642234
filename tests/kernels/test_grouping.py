"""Pairs of numbers become dense slots in the order of their first row, however many there are and however they lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.kernels.grouping import _GOLDEN, _OTHER, DEAD_PANE, refill
from dataflow.state import table as table_module
from dataflow.state.table import STEPS_MAX, Table

ints = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)
pairs_of = st.lists(st.tuples(ints, st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(-2, 2)), max_size=50)


@given(st.lists(pairs_of, max_size=4))
def test_slots_are_numbered_as_their_pairs_come(batches: list[list[tuple[int, int]]]) -> None:
    table = Table()
    known: dict[tuple[int, int], int] = {}
    for pairs in batches:
        codes = np.array([code for code, _ in pairs], dtype=np.int64)
        panes = np.array([pane for _, pane in pairs], dtype=np.int64)
        assert table.find(codes, panes).tolist() == [known.setdefault(pair, len(known)) for pair in pairs]
    assert _pairs(table) == known


def _pairs(table: Table) -> dict[tuple[int, int], int]:
    """The slot of each pair."""
    pairs = zip(table.codes.tolist(), table.panes.tolist(), strict=True)
    return {pair: slot for slot, pair in enumerate(pairs) if pair[1] != DEAD_PANE}


@given(st.data())
def test_pairs_keep_their_slots_between_cells_and_hashes(data: st.DataObject) -> None:
    """Dense codes have cells, far ones are hashed; pairs that were released are new when they come again."""
    with pytest.MonkeyPatch.context() as small:
        small.setattr(table_module, "CELLS_MIN", data.draw(st.sampled_from([1, 16, 1 << 16])))
        small.setattr(table_module, "CELLS_PER_GROUP", 2)
        table = Table()
        slot_of: dict[tuple[int, int], int] = {}
        codes = st.integers(0, 9) | st.integers(-40, 40) | st.sampled_from([-(2**63), 2**63 - 1, 2**63 - 2])
        pane_numbers = st.integers(0, 2) | st.integers(-9, 9) | st.sampled_from([-(2**63) + 1, 2**63 - 1])
        for _ in range(data.draw(st.integers(1, 6))):
            pairs = data.draw(st.lists(st.tuples(codes, pane_numbers), max_size=20))
            slots = table.find(*(np.array([pair[n] for pair in pairs], dtype=np.int64) for n in (0, 1))).tolist()
            for pair, slot in zip(pairs, slots, strict=True):
                assert slot_of.setdefault(pair, slot) == slot
            assert len(set(slot_of.values())) == len(slot_of)
            gone = [pair for pair in slot_of if data.draw(st.booleans())]
            table.release(np.array([slot_of.pop(pair) for pair in gone], dtype=np.int64))
            if data.draw(st.booleans()):
                kept = np.array(sorted(slot_of.values()), dtype=np.int64)
                table.keep(kept, table.codes[kept], len(kept))
                slot_of = {pair: kept.tolist().index(slot) for pair, slot in slot_of.items()}
            assert _pairs(table) == slot_of
            assert table.count == len(slot_of)


@pytest.mark.parametrize("step", [1, -1, 3_001, 6_765, 10_946, 17_711, 60_000_000, 2**32, 2**48, 3_600_000_000])
def test_codes_in_any_progression_are_found_in_few_steps(step: int) -> None:
    numbers = np.arange(20_000) % 10_000
    table = Table()
    assert table.find(numbers * step, np.zeros(20_000, dtype=np.int64)).tolist() == numbers.tolist()
    assert (table.codes[:10_000] == np.arange(10_000) * step).all()
    again = np.zeros_like(table._table)
    assert refill(again, table._codes, table._panes, table._shift, STEPS_MAX * table.count)


def test_codes_that_were_scrambled_stay_themselves_through_growth_and_clean_up() -> None:
    table = Table()
    zeros = np.zeros(4_000, dtype=np.int64)
    codes = np.arange(4_000) * 17_711
    slots = table.find(codes, zeros).copy()
    assert table._scramble != 1
    kept = slots[::2]
    table.keep(kept, table.codes[kept], 4_000)
    assert table.codes[:2_000].tolist() == codes[::2].tolist()
    assert table.find(codes[::2], zeros[::2]).tolist() == list(range(2_000))
    assert table.find(codes[1::2], zeros[1::2]).tolist() == list(range(2_000, 4_000))


def test_pairs_made_to_collide_are_scrambled_apart() -> None:
    # each pane undoes what its code does to the hash: all pairs begin at the same place of the table
    per_code = -int(_GOLDEN) * pow(int(_OTHER), -1, 2**64)
    panes = np.array([number * per_code % 2**64 for number in range(1, 5_000)], dtype=np.uint64).view(np.int64)
    codes = np.arange(1, 5_000)
    table = Table()
    assert table.find(codes, panes).tolist() == list(range(4_999))
    assert table._scramble != 1
    assert (table.codes[:4_999] == codes).all()
