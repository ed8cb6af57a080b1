"""The tool that watches long trainings: what it calls growth, and one short session of the real command."""

import pytest

from tests.soak.session import Sample, grown, soak


def _series(slope: float) -> list[Sample]:
    return [Sample(i, 400 + slope * i, 40, 12) for i in range(40)]


def test_grown_flat_series_reports_nothing():
    assert grown(_series(0.0)) == []


def test_grown_leak_of_one_mb_a_sample_names_memory():
    """A leak of a megabyte every ten seconds is one that fills 24 GB in less than three days."""
    (line,) = grown(_series(1.0))
    assert line.startswith("memory_mb grew by")


def test_grown_warm_up_is_not_counted():
    samples = [sample._replace(memory_mb=300 + 10 * min(i, 9)) for i, sample in enumerate(_series(0.0))]
    assert grown(samples) == []


def test_grown_one_descriptor_more_is_named():
    samples = [sample._replace(open_files=40 + i // 20) for i, sample in enumerate(_series(0.0))]
    assert [line.split()[0] for line in grown(samples)] == ["open_files"]


@pytest.mark.slow
def test_soak_real_training_takes_samples_and_ends_resumably(tmp_path):
    samples, fault = soak("online", 0.2, 1.0, tmp_path)
    assert len(samples) >= 4
    assert samples[-1].memory_mb > 50
    assert not fault
