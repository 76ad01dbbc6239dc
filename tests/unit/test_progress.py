"""Where the time of a pull went."""

from __future__ import annotations

from lamina.images.progress import StageClock, Timings


def test_overlapping_work_counts_as_download_while_anything_downloads() -> None:
    now = 0.0
    clock = StageClock(lambda: now)
    with clock.running("download"):
        now += 1
        with clock.running("unpack"):
            now += 2
            with clock.running("download"):
                now += 4
    with clock.running("unpack"):
        now += 8
    now += 100
    clock.received(10)
    clock.received(5)
    assert clock.timings() == Timings(download=7, unpack=8, downloaded=15)


def test_bottleneck() -> None:
    assert Timings().bottleneck == ""
    assert Timings(download=2, unpack=1).bottleneck == "download"
    assert Timings(download=1, unpack=2).bottleneck == "unpack"
