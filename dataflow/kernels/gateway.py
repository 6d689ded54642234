"""Arrow arrays as the plain arrays that kernels take: int64 or float64 values, and which of them are valid.

Whatever is called for each batch goes through buffers: Arrow's own conversions let go of the interpreter's lock several
times each, and where two workers contend for it each time costs a change of threads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataflow.message import BoolArray, Float64Array, Int64Array

ALL_VALID: BoolArray = np.empty(0, dtype=np.bool_)
"""Stands for a validity of only true: a kernel needs no second signature for arrays without nulls."""


def values_of(array: pa.Array) -> tuple[Int64Array | Float64Array, BoolArray]:
    """The values (floats as float64, all else as int64) and their validity; without a copy where widths agree.

    What stands at a null's place is undefined.
    """
    valid = validity_of(array)
    kind = array.type
    if pa.types.is_floating(kind):
        return _viewed(array if kind.equals(pa.float64()) else array.cast(pa.float64()), np.dtype(np.float64)), valid
    if pa.types.is_boolean(kind):
        return _viewed(array.cast(pa.int8()).cast(pa.int64()), np.dtype(np.int64)), valid
    if kind.bit_width == 64:
        return _viewed(array, np.dtype(np.int64)), valid
    if pa.types.is_temporal(kind):
        array = array.view(pa.int32())
    return _viewed(array.cast(pa.int64()), np.dtype(np.int64)), valid


def ints_of(array: pa.Array) -> Int64Array:
    """The values of an array of 64-bit integers or times without nulls; no copy."""
    return _viewed(array, np.dtype(np.int64))


def int32s_of(array: pa.Array) -> npt.NDArray[np.int32]:
    """The values of an array of 32-bit integers without nulls; no copy."""
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.empty(0, dtype=np.int32)
    return np.frombuffer(data, dtype=np.int32, count=len(array), offset=array.offset * 4)


def column_of(values: np.ndarray, kind: pa.DataType | None = None) -> pa.Array:
    """A contiguous array of int64 or float64 as a column, of any type of 64 bits; no copy."""
    if kind is None:
        kind = _FLOATS if values.dtype == np.float64 else _INTS
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


_INTS, _FLOATS = pa.int64(), pa.float64()


def validity_of(array: pa.Array) -> BoolArray:
    """True for each value that is not null; `ALL_VALID` when none is."""
    if not array.null_count:
        return ALL_VALID
    valid: BoolArray = array.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _viewed(array: pa.Array, dtype: np.dtype) -> np.ndarray:
    """The values of a 64-bit array, whatever its logical type."""
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.empty(0, dtype=dtype)
    return np.frombuffer(data, dtype=dtype, count=len(array), offset=array.offset * 8)
