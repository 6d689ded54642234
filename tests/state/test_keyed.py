"""Keys become dense slots, whatever their type and however the batches come; the hash is the documented one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.state import keyed, keys, table
from dataflow.state.keyed import RELEASES, VALUES_PER_GROUP_MAX, Groups
from dataflow.state.keys import row_hashes
from dataflow.state.table import GROUPS_MIN

KEYS = [
    [pa.int64()],
    [pa.int32()],
    [pa.string()],
    [pa.float64()],
    [pa.bool_()],
    [pa.timestamp("ns")],
    [pa.decimal128(25, 2)],
    [pa.uint64()],
    [pa.int64(), pa.string()],
    [pa.string(), pa.float64(), pa.bool_()],
]


def panes(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def pairs(columns: Sequence[pa.Array]) -> list[tuple[object, ...]]:
    return list(zip(*[column.to_pylist() for column in columns], strict=True))


@pytest.mark.parametrize("types", KEYS, ids=str)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_equal_keys_share_a_slot_and_others_do_not(types: list[pa.DataType], data: st.DataObject) -> None:
    groups = Groups(types)
    known: dict[tuple[object, ...], int] = {}
    for _ in range(3):
        rows = data.draw(st.lists(st.tuples(*[st.none() | st.integers(0, 3) for _ in types]), max_size=8))
        raw = [pa.array([row[n] for row in rows], pa.int64()) for n in range(len(types))]
        columns = [_as_type(column, kind) for column, kind in zip(raw, types, strict=True)]
        numbers = data.draw(st.lists(st.integers(-2, 2), min_size=len(rows), max_size=len(rows)))
        slots = groups.slots(columns, panes(*numbers)).tolist()
        for row, pane, slot in zip(rows, numbers, slots, strict=True):
            key = (
                *(bool(v) if kind == pa.bool_() and v is not None else v for v, kind in zip(row, types, strict=True)),
            )
            assert known.setdefault((*key, pane), slot) == slot
        assert len(set(known.values())) == len(known) == groups.count
        back = groups.keys(np.array(slots, dtype=np.int64))
        assert all(one.equals(other) for one, other in zip(back, columns, strict=True))


def _as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return column.cast(kind)
    return column.cast(pa.bool_()) if pa.types.is_boolean(kind) else column.cast(kind)


def _listed(column: pa.Array) -> list[object]:
    """Python values; of times the ticks, since Python has no nanoseconds."""
    values: list[object] = (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
    return values


def test_null_nan_and_minus_zero_are_groups_as_documented() -> None:
    groups = Groups([pa.float64()])
    column = pa.array([0.0, -0.0, float("nan"), -float("nan"), None, None])
    slots = groups.slots([column], panes(0, 0, 0, 0, 0, 0)).tolist()
    assert slots[0] == slots[1] and slots[2] == slots[3] and slots[4] == slots[5] and len(set(slots)) == 3


def test_the_first_null_changes_no_slot_that_was_given() -> None:
    groups = Groups([pa.int64()])
    first = groups.slots([pa.array([7, -(2**63), 2**63 - 1])], panes(0, 0, 0)).tolist()
    groups.slots([pa.array([None, 7])], panes(0, 0))
    again = groups.slots([pa.array([7, -(2**63), 2**63 - 1])], panes(0, 0, 0)).tolist()
    assert first == again


def test_ints_too_large_to_be_joined_are_still_told_apart() -> None:
    groups = Groups([pa.int64(), pa.int64()])
    small = groups.slots([pa.array([1, 2]), pa.array([1, 1])], panes(0, 0)).tolist()
    large = groups.slots([pa.array([2**40, 1]), pa.array([-(2**50), 1])], panes(0, 0)).tolist()
    assert small[0] == large[1] and len({*small, *large}) == 3


def test_a_dictionary_and_plain_text_are_the_same_key() -> None:
    groups = Groups([pa.string()])
    text = pa.array(["b", None, "a", "b", "", "é"])
    plain = groups.slots([text], panes(*[0] * 6)).tolist()
    assert groups.slots([text.dictionary_encode()], panes(*[0] * 6)).tolist() == plain
    assert groups.slots([text.slice(2)], panes(*[0] * 4)).tolist() == plain[2:]


@pytest.mark.parametrize("index", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64()], ids=str)
def test_a_dictionary_may_be_full_and_hold_nulls_itself(index: pa.DataType) -> None:
    values = pa.array([str(n) for n in range(127)] + [None])
    indices = pa.array([None, *range(128)] * 2).cast(index)
    column = pa.DictionaryArray.from_arrays(indices, values)
    groups = Groups([pa.string()])
    slots = groups.slots([column], panes(*[0] * 258))
    assert groups.count == 128  # the null of the dictionary and that of the index are one group
    assert groups.keys(slots)[0].equals(column.cast(pa.string()))
    numbers = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, None]), pa.array([5, None]))
    assert Groups([pa.int64()]).slots([numbers], panes(0, 0, 0, 0)).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view(), pa.large_string(), pa.binary(2)], ids=str)
def test_text_of_every_layout_is_a_key(kind: pa.DataType) -> None:
    column = pa.array(["ab", None, "cd", "ab"]).cast(pa.binary()).cast(kind)
    groups = Groups([kind])
    slots = groups.slots([column], panes(0, 0, 0, 0))
    assert slots.tolist() == [0, 1, 2, 0]
    assert groups.keys(slots)[0].equals(column)
    assert row_hashes([column])[0] == xxhash.xxh64_intdigest(b"ab")


def test_a_dictionary_that_another_task_sends_again_is_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = Groups([pa.string()]), Groups([pa.string()])
    names = pa.array(["x", None, "y", "x"])
    slots = sender.slots([names], panes(0, 0, 0, 1))
    sent = sender.encoded_keys(slots)
    assert sent[0].equals(sender.encoded_keys(slots)[0])
    first = receiver.slots(sent, panes(0, 0, 0, 1)).tolist()
    monkeypatch.setattr(keys.TextIndex, "ids_of", lambda *_: pytest.fail("it was hashed again"))
    assert receiver.slots(sender.encoded_keys(slots), panes(0, 0, 0, 1)).tolist() == first == [0, 1, 2, 3]
    assert receiver.keys(np.array(first))[0].equals(names)


def test_values_of_a_dictionary_that_no_row_has_are_forgotten() -> None:
    groups = Groups([pa.string()])
    for turn in range(50):
        values = pa.array(["x", *(f"{turn} {n}" for n in range(1_000))])
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_500, dtype=np.int32)), values)
        slots = groups.slots([column], np.full(1_500, turn))
        assert groups.keys(slots[:1])[0].to_pylist() == ["x"]
        groups.release(slots[:1].copy())
        known = groups._columns[0].texts
        assert known is not None and known.count <= 5 * VALUES_PER_GROUP_MAX * GROUPS_MIN // 4


@pytest.mark.parametrize("types", [[pa.int64()], [pa.string()], [pa.int64(), pa.string(), pa.int32()]], ids=str)
def test_memory_follows_the_live_groups_when_no_key_comes_back(types: list[pa.DataType]) -> None:
    groups = Groups(types)
    for turn in range(40):
        numbers = pa.array(np.arange(turn * 1000, (turn + 1) * 1000))
        slots = groups.slots([numbers.cast(kind) for kind in types], np.full(1000, turn)).copy()
        assert pairs(groups.keys(slots)) == pairs([numbers.cast(kind) for kind in types])
        groups.release(slots)
        assert groups.room <= 4 * GROUPS_MIN
    assert not groups.count and not len(groups.live_slots())


def test_room_that_stays_empty_is_given_back_and_the_slots_that_are_left_are_told() -> None:
    groups = Groups([pa.int64()])
    slots = groups.slots([pa.array(np.arange(100_000))], np.zeros(100_000, np.int64)).copy()
    groups.release(slots[10:])
    room = groups.room
    for turn in range(2 * RELEASES):
        more = groups.slots([pa.array(np.arange(100))], np.full(100, turn)).copy()
        kept = groups.release(more[10:])
        if kept is not None:
            break
        assert groups.room == room
    assert kept is not None and kept[:10].tolist() == slots[:10].tolist()
    assert len(kept) == groups.count and groups.room == GROUPS_MIN
    assert groups.keys(np.arange(10))[0].to_pylist() == list(range(10))


@given(st.lists(st.binary(max_size=100), min_size=1))
def test_the_hash_of_bytes_is_xxh64(values: list[bytes]) -> None:
    assert row_hashes([pa.array(values)]).tolist() == [xxhash.xxh64_intdigest(value) for value in values]


def test_the_hash_is_the_one_in_format_md() -> None:
    assert row_hashes([pa.array([1])])[0] == 0x9F29CB17A2A49995
    assert row_hashes([pa.array([-0.0])])[0] == 0x34C96ACDCADB1BBB
    assert row_hashes([pa.array([float("nan")])])[0] == 0xE9ADB09FEE122AAC
    assert row_hashes([pa.array([None], pa.string())])[0] == 0xB4AD8A2A3728B057
    assert row_hashes([pa.array(["a"]), pa.array([None], pa.int64())])[0] == 0x2F182264975E9E33
    assert row_hashes([pa.array([10]), pa.array(["JFK"]).dictionary_encode(), pa.array([1.5])])[0] == 0x60C29AB4E83DAF5B
    assert row_hashes([pa.array([1_700_000_000], pa.timestamp("s"))])[0] == 0x813CE5E981EAA80D


@pytest.mark.parametrize("types", KEYS, ids=str)
@settings(max_examples=25)
@given(data=st.data())
def test_no_group_is_lost_or_mixed_up_by_growth_nulls_and_clean_ups(
    types: list[pa.DataType], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as small:
        for module in (table, keys, keyed):
            small.setattr(module, "GROUPS_MIN", 4)
        small.setattr(keyed, "RELEASES", 2)
        small.setattr(keyed, "ROOM_PER_GROUP_MAX", 1)
        # the first collision scrambles the codes
        small.setattr(table.Table, "_patience", lambda one, rows: one._steps_max - table.STEPS_MAX)
        groups = Groups(types)
        slot_of: dict[tuple[object, ...], int] = {}
        for _ in range(data.draw(st.integers(1, 6))):
            rows = data.draw(st.lists(st.tuples(*[st.none() | st.integers(0, 9) for _ in types]), max_size=12))
            raw = [pa.array([row[n] for row in rows], pa.int64()) for n in range(len(types))]
            columns = [_as_type(column, kind) for column, kind in zip(raw, types, strict=True)]
            sent = [column.dictionary_encode() if data.draw(st.booleans()) else column for column in columns]
            numbers = data.draw(st.lists(st.integers(-1, 1), min_size=len(rows), max_size=len(rows)))
            slots = groups.slots(sent, panes(*numbers)).tolist()
            for *key, pane, slot in zip(*map(_listed, columns), numbers, slots, strict=True):
                assert slot_of.setdefault((*key, pane), slot) == slot
            assert len(set(slot_of.values())) == len(slot_of)
            gone = [key for key in slot_of if data.draw(st.booleans())]
            kept = groups.release(panes(*[slot_of.pop(key) for key in gone]))
            if kept is not None:
                now = {old: new for new, old in enumerate(kept.tolist())}
                slot_of = {key: now[slot] for key, slot in slot_of.items()}
            assert sorted(slot_of.values()) == groups.live_slots().tolist()
            back = groups.keys(panes(*slot_of.values()))
            known = zip(*map(_listed, back), groups.panes[panes(*slot_of.values())].tolist(), strict=True)
            assert list(known) == list(slot_of)
