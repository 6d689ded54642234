"""The independent verifier: whether a store is what FORMAT.md says, read by someone who has only that page.

It shares no code with what writes, reads and recovers stores: a mistake that both made would not be seen. So it opens
files by itself (the seam of `dataflow.system` is not for it), and a test holds its imports to the standard library,
pyarrow, xxhash and apsw.

The hard part is to trust nothing. Every number of the catalog is held against another one or against a file before
it is used; Arrow decodes a message only after its checksum agreed and its frame was found sound; and what is wrong
becomes a `Finding`, whatever it is: `verify` raises nothing for a damaged store (only a StoreError where there is no
room to copy the catalog to). A store may be written meanwhile: the
catalog is looked at in a copy of one moment, published bytes never change, and only the frames of a checkpoint may be
gone by the time they are read, which is why they come first and are tried again with a newer catalog.

>>> verify("no such store").ok
False
"""

from __future__ import annotations

from dataflow.state.verify.check import Report, commits, rows, verify
from dataflow.state.verify.files import Finding

__all__ = ["Finding", "Report", "commits", "rows", "verify"]
