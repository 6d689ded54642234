"""What a store promises to programs: names, visibility, schemas, one commit for many topics, clear refusals."""

from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa
import pytest

from dataflow.errors import DataflowError, NameNotFoundError, StoreError, TypeMismatchError
from dataflow.state import store as stores
from dataflow.state.catalog import Catalog
from dataflow.state.catalog_database import UnfinishedCatalogError
from dataflow.state.layout import Layout
from dataflow.state.log.writer import Pending, TopicWriter
from dataflow.state.store import EpochRecord, Store
from dataflow.system import LockHeldError, RealSystem, SimulatedSystem, System

NUMBERS = pa.schema({"n": pa.int64()})
ROOT = Path(__file__).parents[2]


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(numbers, pa.int64())})


def prepared(writer: TopicWriter, *numbers: int) -> Pending:
    writer.append(batch(*numbers))
    pending = writer.prepare()
    assert pending is not None
    return pending


def epoch(number: int, *, pipeline: str = "job", finished: bool = False) -> EpochRecord:
    return EpochRecord(
        pipeline=pipeline,
        epoch=number,
        finished=finished,
        graph_hash="abc",
        checkpoint={"sources": {"in": {"0": number}}},
        ledger={"filter": {"in": 3, "passed": 3}},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def numbers(store: Store, topic: str = "t") -> list[object]:
    return list(store.read(topic)["n"].to_pylist())


# ── reading and writing ──


@pytest.mark.parametrize("simulated", [False, True])
def test_what_was_appended_is_read_back_in_order_also_after_reopening(tmp_path: Path, simulated: bool) -> None:
    system = SimulatedSystem(seed=1) if simulated else RealSystem()
    path = str(tmp_path / "store")
    with Store(path, system) as store:
        assert [store.append("t", batch(1, 2)), store.append("t", pa.Table.from_batches([batch(3)]))] == [1, 2]
        assert numbers(store) == [1, 2, 3]
    with Store(path, system) as store:
        store.append("t", batch(4))
        assert numbers(store) == [1, 2, 3, 4]
        info = store.topic("t")
        assert (info.name, info.partitions, info.rows, info.schema) == ("t", 1, 4, NUMBERS)
        assert store.topics() == [info]


def test_rows_are_read_by_offset_and_by_column(store: Store) -> None:
    for start in (0, 10, 20):
        store.append("t", pa.table({"n": list(range(start, start + 10)), "s": ["x"] * 10}))
    assert store.read("t", start=5, until=25, columns=["n"])["n"].to_pylist() == list(range(5, 25))
    assert store.read("t", start=10, until=20).num_columns == 2
    assert store.read("t", start=30).num_rows == 0
    assert store.read("t", until=0).num_rows == 0
    assert len(store.batches("t", start=10, until=20)) == 1
    with pytest.raises(NameNotFoundError, match="did you mean `n`"):
        store.read("t", columns=["N"])


def test_append_cuts_a_table_into_batches_of_equal_size_whatever_its_chunks(store: Store) -> None:
    chunks = pa.concat_tables([pa.table({"n": pa.array(range(n), pa.int64())}) for n in (1, 280_000, 0, 262_143)])
    store.append("t", chunks)
    assert [entry.rows for entry in store.batches("t")] == [262_144, 262_144, 17_856]
    assert store.read("t").equals(chunks.combine_chunks())


def test_append_makes_smaller_batches_of_wide_rows(store: Store) -> None:
    rows = pa.table({"text": ["x" * 10_000] * 4_000})
    store.append("t", rows)
    assert max(entry.rows for entry in store.batches("t")) * 10_000 <= 16 << 20
    assert store.read("t").equals(rows)


def test_a_writer_neither_splits_nor_merges_batches(store: Store) -> None:
    with store.writer("t", NUMBERS) as writer:
        for rows in ((1,), (), (2, 3)):
            writer.append(batch(*rows))
        pending = writer.prepare()
        assert pending is not None
        store.publish([pending])
    assert [entry.rows for entry in store.batches("t")] == [1, 2]


def test_rows_are_invisible_until_they_are_published(store: Store, tmp_path: Path) -> None:
    store.append("t", batch(1))
    other = Store(tmp_path / "store")
    with store.writer("t", NUMBERS) as writer:
        writer.append(batch(2))
        assert numbers(other) == [1]
        pending = writer.prepare()
        assert pending is not None
        assert numbers(other) == [1]
        store.publish([pending])
        assert numbers(other) == [1, 2]
    other.close()


def test_one_commit_publishes_many_topics_and_the_epoch_together(store: Store) -> None:
    with store.writer("a", NUMBERS) as a, store.writer("b", NUMBERS) as b, store.writer("b", NUMBERS, partition=1) as c:
        commit = store.publish([prepared(a, 1), prepared(b, 2), prepared(c, 3)], epoch=epoch(1))
        store.publish([prepared(c, 4)], epoch=epoch(2, finished=True))
    assert (numbers(store, "a"), numbers(store, "b")) == ([1], [2, 3, 4])
    assert {entry.commit_id for name in "ab" for entry in store.batches(name)} == {commit}
    assert [entry.epoch for entry in store.batches("b", 1)] == [1, 2]
    state = store.pipeline("job")
    assert state is not None
    assert (state.epoch, state.finished, state.graph_hash) == (2, True, "abc")
    assert state.checkpoint == {"sources": {"in": {"0": 2}}}
    assert list(store.ledger("job")) == [1, 2]
    assert store.pipeline("another") is None


def test_partitions_are_read_in_the_order_of_their_commits(store: Store) -> None:
    with store.writer("t", NUMBERS) as zero, store.writer("t", NUMBERS, partition=1) as one:
        for round_ in range(3):
            store.publish([prepared(one, round_ * 2)])
            store.publish([prepared(zero, round_ * 2 + 1)])
    assert numbers(store) == [0, 1, 2, 3, 4, 5]
    assert store.partitions("t") == [0, 1]


def test_an_epoch_that_was_committed_before_is_refused_with_all_its_rows(store: Store) -> None:
    with store.writer("t", NUMBERS) as writer:
        store.publish([prepared(writer, 1)], epoch=epoch(7))
        pending = prepared(writer, 2)
        with pytest.raises(StoreError, match="comes after epoch 7") as refused:
            store.publish([pending], epoch=epoch(7))
        assert refused.value.code == "DF0607"
        assert numbers(store) == [1]
        store.publish([pending], epoch=epoch(8))
        assert numbers(store) == [1, 2]


def test_the_next_epochs_rows_may_come_in_before_the_commit(store: Store) -> None:
    with store.writer("t", NUMBERS) as writer:
        first = prepared(writer, 1)
        writer.append(batch(2))
        second = writer.prepare()
        assert second is not None
        writer.append(batch(3))
        store.publish([first])
        assert numbers(store) == [1]
        store.publish([second])
        assert numbers(store) == [1, 2]
    assert numbers(store) == [1, 2], "what was only written is taken back on close"


def test_rollback_takes_back_what_is_not_published_and_the_writer_goes_on(store: Store) -> None:
    with store.writer("t", NUMBERS) as writer:
        taken_back = prepared(writer, 1)
        writer.append(batch(2))
        writer.rollback()
        with pytest.raises(StoreError, match="taken back"):
            store.publish([taken_back])
        store.publish([prepared(writer, 3)])
        writer.append(batch(4))
        writer.rollback()
        store.publish([prepared(writer, 5)])
    assert numbers(store) == [3, 5]
    assert [entry.first_offset for entry in store.batches("t")] == [0, 1]


def test_a_prepare_without_rows_publishes_an_empty_topic_once(store: Store) -> None:
    with store.writer("t", NUMBERS) as writer:
        pending = writer.prepare()
        assert pending is not None
        store.publish([pending])
        assert writer.prepare() is None
    assert store.read("t").equals(NUMBERS.empty_table())


def test_a_segment_is_full_at_its_limit_and_the_next_file_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dataflow.state.log.writer.SEGMENT_BYTES_MAX", 900)  # a header and one batch
    with store.writer("t", NUMBERS) as writer:
        store.publish([prepared(writer, *range(50))])
        for start in (50, 100, 150):
            writer.append(batch(*range(start, start + 50)))
        pending = writer.prepare()
        assert pending is not None
        assert len(pending.segments) == 3
        writer.append(batch(-1))
        store.publish([pending])
        writer.rollback()
        store.publish([prepared(writer, *range(200, 250))])
    assert numbers(store) == list(range(250))
    files = sorted((tmp_path / "store/topics/t/0").glob("*.arrow"))
    assert len(files) == len({entry.segment.path for entry in store.batches("t")})


def test_many_threads_read_and_write_one_store(store: Store) -> None:
    def work(name: str) -> None:
        for n in range(5):
            store.append(name, batch(n))
            for entry in store.batches(name):
                store.read_entry(entry)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [f"t{i}" for i in range(4)]))
    assert all(numbers(store, f"t{i}") == [0, 1, 2, 3, 4] for i in range(4))


def test_commits_of_several_threads_share_a_transaction_and_stand_alone(store: Store) -> None:
    """One of them is refused; the others are published all the same."""
    writers = [store.writer(f"t{i}", NUMBERS) for i in range(4)]
    pendings = [prepared(writer, i) for i, writer in enumerate(writers)]
    store.publish([], epoch=epoch(5))

    def publish(i: int) -> str | None:
        record = epoch(5, pipeline="job" if i == 2 else f"p{i}")
        try:
            store.publish([pendings[i]], epoch=record)
        except StoreError as error:
            return error.code
        return None

    store._last_commit_at = store.system.clock.monotonic() + 0.05  # so that all queue up
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(publish, range(4)))
    for writer in writers:
        writer.close()
    assert outcomes == [None, None, "DF0607", None]
    assert sorted(info.name for info in store.topics()) == ["t0", "t1", "t3"]


# ── columns ──


def test_dictionary_columns_are_stored_decoded_at_any_depth(store: Store) -> None:
    words = pa.array(["a", None, "b"]).dictionary_encode()
    table = pa.table({"word": words, "inside": pa.StructArray.from_arrays([words], ["word"])})
    store.append("t", table.select(["word"]))
    assert store.schema("t") == pa.schema({"word": pa.string()})
    assert store.read("t")["word"].to_pylist() == ["a", None, "b"]
    with store.writer("plain", pa.schema({"word": pa.string()})) as writer:
        writer.append(pa.record_batch({"word": words}))
        pending = writer.prepare()
        assert pending is not None
        store.publish([pending])
    assert store.read("plain").equals(store.read("t"))


def test_columns_may_come_in_another_order(store: Store) -> None:
    store.append("t", pa.table({"a": [1], "b": ["x"]}))
    store.append("t", pa.table({"b": ["y"], "a": [2]}))
    assert store.read("t").to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


def test_a_new_column_makes_a_new_segment_and_is_null_in_older_rows(store: Store) -> None:
    store.append("t", pa.table({"a": [1]}))
    store.append("t", pa.table({"b": ["x"], "a": [2]}))
    assert store.read("t").to_pydict() == {"b": [None, "x"], "a": [1, 2]}
    assert len({entry.segment.path for entry in store.batches("t")}) == 2


@pytest.mark.parametrize(
    ("columns", "said"),
    [({"a": ["text"]}, "has it as string"), ({"b": [1]}, "lacks it"), ({"a": [1.5]}, "has it as double")],
)
def test_columns_are_never_changed_or_left_out(store: Store, columns: dict[str, list[object]], said: str) -> None:
    store.append("t", pa.table({"a": [1]}))
    with pytest.raises(StoreError, match=said) as refused:
        store.append("t", pa.table(columns))
    assert refused.value.code == "DF0605"
    store.append("t", pa.table({"a": [2]}))
    assert store.read("t").to_pydict() == {"a": [1, 2]}


def test_a_batch_that_does_not_fit_the_schema_is_refused_and_nothing_is_written(store: Store) -> None:
    with store.writer("t", NUMBERS) as writer:
        for wrong in ({"n": ["text"]}, {}, {"n": [1], "m": [1]}, {"n": [1.0]}):
            with pytest.raises(StoreError, match="nothing was written"):
                writer.append(pa.record_batch(wrong))
        store.publish([prepared(writer, 1)])
    assert numbers(store) == [1]


# ── names, directories, refusals ──

HOSTILE = [
    "",
    ".",
    "..",
    "a/b",
    "../up",
    "/etc",
    "a\\b",
    "a b",
    "a\0b",
    "a\n",
    "größe",
    "a%2e",
    "x" * 201,
    "\u202e",
    "a:b",
    "~",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_topic_names_are_refused_everywhere(store: Store, name: str, tmp_path: Path) -> None:
    store.append("t", batch(1))
    for use in (
        lambda: store.append(name, batch(1)),
        lambda: store.writer(name, NUMBERS),
        lambda: store.read(name),
        lambda: store.batches(name),
    ):
        with pytest.raises(DataflowError) as refused:
            use()
        assert refused.value.code == "DF0203"
    assert [path.name for path in (tmp_path / "store/topics").iterdir()] == ["t"]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("name", ["CON", "...", "-rf", "a.b_c-D", "x" * 200])
def test_odd_but_harmless_topic_names_are_taken(store: Store, name: str) -> None:
    store.append(name, batch(1))
    assert numbers(store, name) == [1]


def test_names_that_differ_in_case_only_are_refused(store: Store) -> None:
    store.append("Clicks", batch(1))
    with pytest.raises(StoreError, match="there is `Clicks`"):
        store.append("clicks", batch(1))
    with pytest.raises(NameNotFoundError, match="did you mean `Clicks`"):
        store.read("clicks")


def test_two_new_topics_that_differ_in_case_only_meet_in_the_commit(store: Store) -> None:
    with store.writer("A", NUMBERS) as upper, store.writer("a", NUMBERS) as lower:
        store.publish([prepared(upper, 1)])
        with pytest.raises(StoreError, match="differ in case"):
            store.publish([prepared(lower, 2)])
    assert [info.name for info in store.topics()] == ["A"]


def test_only_the_owner_can_look_inside(store: Store, tmp_path: Path) -> None:
    store.append("t", batch(1))
    store.lock_pipeline("My job/7").release()
    for path in [tmp_path / "store", *(tmp_path / "store").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "store/locks/pipeline-%4Dy%20job%2F7.lock").exists()


def test_one_writer_a_partition_and_one_run_a_pipeline(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "APPEND_SECONDS_MAX", 0.05)
    other = Store(tmp_path / "store")
    with store.writer("t", NUMBERS), store.writer("t", NUMBERS, partition=1):
        with pytest.raises(LockHeldError, match=r"topic `t` \(partition 0\)"):
            other.writer("t", NUMBERS)
        with pytest.raises(LockHeldError):
            other.append("t", batch(1))
    other.append("t", batch(1))
    with store.lock_pipeline("job"), pytest.raises(LockHeldError, match="pipeline `job`"):
        other.lock_pipeline("job")
    other.lock_pipeline("job").release()


def test_stores_append_in_turns(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "store")
    for n in range(3):
        store.append("t", batch(n * 2))
        other.append("t", batch(n * 2 + 1))
    assert numbers(store) == numbers(other) == [0, 1, 2, 3, 4, 5]


def test_reading_where_nothing_was_written_asks_whether_it_ran(store: Store, tmp_path: Path) -> None:
    for use in (store.topics, lambda: store.read("t"), lambda: store.batches("t")):
        with pytest.raises(StoreError, match="there is no store at") as refused:
            use()
        assert "did the pipeline run" in str(refused.value)
    assert store.pipeline("job") is None
    assert not list(tmp_path.iterdir()), "reading makes nothing"


def test_an_unknown_topic_is_answered_with_the_nearest(store: Store) -> None:
    store.append("clicks", batch(1))
    with pytest.raises(NameNotFoundError, match="did you mean `clicks`"):
        store.read("click")


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"not a store.*thesis\.tex"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_store_without_its_catalog_is_refused_and_left_alone(store: Store, tmp_path: Path) -> None:
    store.append("t", batch(1))
    store.close()
    (tmp_path / "store/catalog.db").unlink()
    with pytest.raises(StoreError, match=r"no catalog\.db"):
        Store(tmp_path / "store")
    assert len(list((tmp_path / "store/topics/t/0").glob("*.arrow"))) == 1


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
def test_another_catalog_db_is_refused_and_left_alone(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        foreign = apsw.Connection(str(tmp_path / "catalog.db"))
        foreign.execute("CREATE TABLE theirs (n)")
        foreign.close()
    else:
        (tmp_path / "catalog.db").write_bytes(content)
    before = (tmp_path / "catalog.db").read_bytes()
    with pytest.raises(StoreError, match="is not"):
        Store(tmp_path).append("t", batch(1))
    assert (tmp_path / "catalog.db").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.db"]


def test_a_newer_format_is_refused_before_anything_is_changed(store: Store, tmp_path: Path) -> None:
    store.append("t", batch(1))
    store.close()
    catalog = apsw.Connection(str(tmp_path / "store/catalog.db"))
    catalog.execute("PRAGMA user_version = 3")
    catalog.close()
    with pytest.raises(StoreError, match="format version 3") as refused:
        store.read("t")
    assert refused.value.code == "DF0606"
    with pytest.raises(StoreError, match="format version 3"):
        store.append("t", batch(2))


@pytest.mark.parametrize("size", [0, None])
def test_a_catalog_whose_making_was_cut_off_is_made_anew(tmp_path: Path, size: int | None) -> None:
    if size is None:  # the switch to WAL came through, the tables did not
        half = apsw.Connection(str(tmp_path / "catalog.db"))
        list(half.execute("PRAGMA journal_mode = WAL"))
        half.close()
    else:
        (tmp_path / "catalog.db").touch()
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="there is no store"):
        store.topics()
    store.append("t", batch(1))
    assert numbers(store) == [1]


def test_a_store_that_nobody_closed_leaves_nothing_open(tmp_path: Path) -> None:
    def use() -> None:
        Store(tmp_path / "store").append("t", batch(1))
        Store(tmp_path / "store").read("t")
        Store(tmp_path / "store").writer("t", NUMBERS).append(batch(2))

    use()
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    use()
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert numbers(Store(tmp_path / "store")) == [1, 1]


def test_importing_the_store_imports_neither_sqlite_nor_arrows_compute() -> None:
    code = "import sys, dataflow.state.store; print({'apsw', 'pyarrow.compute', 'sqlite3'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "set()\n"


def test_a_catalog_that_was_emptied_is_not_taken_for_a_new_store(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        store.append("t", pa.table({"n": [1, 2]}))
    for path in (tmp_path / "s").glob("catalog.db*"):
        os.truncate(path, 0)
    with pytest.raises(StoreError, match="its only index is gone"):
        Store(tmp_path / "s").append("t", pa.table({"n": [3]}))
    with pytest.raises(StoreError, match="its only index is gone"):
        Store(tmp_path / "s").topics()


def test_a_store_that_another_process_finishes_while_it_is_opened_is_not_one_whose_index_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(_: Catalog, __: System, layout: Layout) -> None:
        monkeypatch.undo()
        with Store(layout.root) as other:
            other.append("t", pa.table({"n": [1]}))
        raise UnfinishedCatalogError(layout.root)

    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "catalog.db").touch()
    monkeypatch.setattr(Catalog, "__init__", overtaken)
    with Store(tmp_path / "s") as store:
        store.append("t", pa.table({"n": [2]}))
        assert store.read("t").to_pydict() == {"n": [1, 2]}


@pytest.mark.parametrize("path", [3, "", None, b"store", "a\0b"])
def test_what_cannot_be_a_directory_is_no_store(path: Any) -> None:
    with pytest.raises(TypeMismatchError, match="a store is a directory, got"):
        Store(path)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"n": [1]}, "takes a pyarrow Table or RecordBatch, got dict"),
        (pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["n", "n"]), "two columns `n`"),
        (pa.table({}), "no columns"),
    ],
)
def test_rows_that_no_topic_can_take_are_refused(tmp_path: Path, rows: Any, told: str) -> None:
    with Store(tmp_path / "s") as store:
        with pytest.raises(DataflowError, match=f"{told}; nothing was appended"):
            store.append("t", rows)
        assert not store.exists


@pytest.mark.parametrize("asked", [{"start": -1}, {"until": -1}, {"start": 1.5}, {"until": True}])
def test_offsets_are_numbers_from_0_on(tmp_path: Path, asked: Any) -> None:
    with Store(tmp_path / "s") as store:
        store.append("t", batch(1))
        with pytest.raises(TypeMismatchError, match=f"`{next(iter(asked))}` is an offset, a number from 0 on"):
            store.read("t", **asked)
