"""The tool that watches long trainings: what counts as growth, and one short session of the real command."""

import pytest

from tests.soak.session import KINDS, Sample, grown, main, soak


def _series(slope: float) -> list[Sample]:
    return [Sample(i, 400 + slope * i, 40, 12) for i in range(40)]


def test_grown_flat_series_reports_nothing():
    assert grown(_series(0.0)) == []


def test_grown_leak_of_one_mb_a_sample_names_memory():
    """A leak of a megabyte every ten seconds fills 24 GB in less than three days."""
    (line,) = grown(_series(1.0))
    assert line.startswith("memory_mb grew by")


def test_grown_warm_up_is_not_counted():
    samples = [sample._replace(memory_mb=300 + 10 * min(i, 9)) for i, sample in enumerate(_series(0.0))]
    assert grown(samples) == []


def test_grown_one_descriptor_more_is_named():
    samples = [sample._replace(open_files=40 + i // 20) for i, sample in enumerate(_series(0.0))]
    assert [line.split()[0] for line in grown(samples)] == ["open_files"]


@pytest.mark.parametrize("given", [["own"], ["offline", "--", "steps=3"]])
def test_main_arguments_of_train_without_the_kind_own_or_the_reverse_are_refused(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(given)
    assert "takes arguments of train.py" in capsys.readouterr().err


@pytest.mark.slow
def test_soak_own_run_stays_where_its_arguments_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.soak.session.grown", lambda samples: [])  # the short run is all warm-up
    own = [*KINDS["online"], f"work_dir={tmp_path / 'mine'}"]
    main(["own", "--minutes", "0.2", "--every", "1", "--", *own])
    assert (tmp_path / "mine" / "run.json").is_file()


@pytest.mark.slow
def test_soak_real_training_takes_samples_and_ends_resumably(tmp_path):
    samples, fault = soak("online", 0.35, 1.0, tmp_path)  # a busy machine takes ten seconds to begin
    assert len(samples) >= 4
    assert samples[-1].memory_mb > 50
    assert not fault
