"""A batch costs a bounded number of Python calls, whatever its rows: nothing in the engine visits rows one by one."""

from benchmarks.a1 import cost


def test_a_batch_costs_few_python_calls() -> None:
    assert cost.calls_per_batch(cost.windowed, batches=200) <= cost.CALLS_MAX
