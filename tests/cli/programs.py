"""Programs that the tests of the command line run."""

WORDS = """
rows = flow.from_rows(
    [{"at": 1, "word": "a"}, {"at": 2, "word": "b"}, {"at": 61, "word": "a"}], {"at": "int64", "word": "string"}
)
words = (
    rows.derive(time=(col.at * 1000).cast("timestamp[ms]"))
    .watermark("time", delay="10s")
    .window(flow.tumbling("1m"), by="word")
    .agg(n=count())
)
pipeline = flow.Pipeline("words", words.write_topic("words"))
"""

TWO = WORDS + 'other = flow.Pipeline("other", words.write_topic("others"))\n'

FUNCTION = WORDS.replace("pipeline =", "made =").replace("made = flow", "def build():\n    return flow")

ENDLESS = """
import itertools, sys, time
def forever():
    print("started", file=sys.stderr, flush=True)
    for number in itertools.count():
        time.sleep(0.001)
        yield {"n": number}
pipeline = flow.Pipeline("endless", flow.from_rows(forever(), {"n": "int64"}).write_topic("numbers"))
"""
