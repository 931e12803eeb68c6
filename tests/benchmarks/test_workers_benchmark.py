"""The arithmetic of benchmarks.workers."""

from __future__ import annotations

from benchmarks.workers import throughput


def test_what_was_under_way_at_first_does_not_count() -> None:
    records = [
        {"tstamp": stamp, "choices": [{"new_tokens": [tokens, 1]}]}
        for stamp, tokens in ((100.0, 50), (101.0, 9), (103.0, 19), (105.0, 19))
    ]
    assert throughput(records, 1) == (10 + 20 + 20) / 5.0
    assert throughput(records, 2) == (20 + 20) / 4.0
