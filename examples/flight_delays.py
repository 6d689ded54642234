"""How late do flights leave New York, hour by hour?

The file lists flights by their *scheduled* departure, but the question is about the hour in which they really left. A
flight that waited on the ground for ten hours stands ten hours too early in the file: in event time the rows are out
of order. `watermark` says how long to wait for such stragglers; a window closes only when nothing can change it.

    dataflow run examples/flight_delays.py --store demo-store
    dataflow log cat hourly_delays --store demo-store
"""

from pathlib import Path

import dataflow as flow
from dataflow import col, count

FLIGHTS = Path(__file__).parent / "data" / "flights-2013-01.csv"

hourly_delays = (
    flow.read_csv(FLIGHTS, null_values=("NA",))
    .filter(col.dep_delay.is_not_null())  # the others were cancelled
    .derive(departed=col.time_hour + flow.duration(minutes=col.minute + col.dep_delay))
    .watermark("departed", delay="24h")
    .window(flow.tumbling("1h"), by="origin")
    .agg(
        flights=count(),
        mean_delay=col.dep_delay.mean(),
        p95_delay=col.dep_delay.quantile(0.95, exact=True),
        worst_carrier=col.carrier.max_by(col.dep_delay),
    )
)

pipeline = flow.Pipeline("flight_delays", hourly_delays.write_topic("hourly_delays"))
