"""Demonstrations of MMBench, from files in newt's format that are made here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from tdmpc2.data.exchange import foreign
from tdmpc2.data.exchange.foreign import import_foreign
from tdmpc2.data.exchange.mmbench import Demonstrations, task_of
from tdmpc2.data.store import importer
from tdmpc2.data.store.meta import StoreMeta
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.support.archives import read_directory
from tests.data.exchange.test_minari import refused, run
from tests.helpers.minari_sets import demonstrations
from tests.helpers.stores import Interrupt, write_until

LENGTHS = (5, 3, 7)
ENDS = (False, True, False)
DIMS = (24, 6)  # of walker-walk


def rows(**changes: Any) -> dict[str, Tensor]:
    """Make rows of three episodes of walker-walk, padded to all tasks of newt; the second episode terminates."""
    return {**demonstrations(LENGTHS, DIMS, ended=1), **changes}


def write(path: Path, fields: dict[str, Tensor]) -> Path:
    torch.save(TensorDict(fields, batch_size=[len(fields["obs"])]), path)
    return path


def test_demonstrations_become_a_store(tmp_path: Path) -> None:
    fields = rows()
    path = write(tmp_path / "walker-walk.pt", fields)
    assert run("import", path, tmp_path / "store", "form=mmbench", "task_set=mt30") == 0
    store = EpisodeStore.open(tmp_path / "store")
    assert store.meta.task == "mt30"
    assert store.task.tolist() == [1] * 3
    assert (store.index.lengths.tolist(), store.index.terminated.tolist()) == (list(LENGTHS), list(ENDS))
    obs, action, reward = store.meta.row_format.split(store.rows)
    used = ~fields["reward"].isnan()
    assert torch.equal(obs, fields["obs"][:, :24])
    assert torch.equal(action[used], fields["action"][used, :6])
    assert torch.equal(reward[used], fields["reward"][used])


def test_demonstrations_without_terminations_have_none(tmp_path: Path) -> None:
    """A file without terminations is imported, also if its rewards have a second axis, as some builds write."""
    fields = rows()
    del fields["terminated"]
    fields["reward"] = fields["reward"][:, None]
    path = write(tmp_path / "any_name.pt", fields)
    assert run("import", path, tmp_path / "store", "form=mmbench", "task=walker-walk") == 0
    assert not EpisodeStore.open(tmp_path / "store").index.terminated.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episode": torch.tensor([0] * 6 + [1] * 4 + [0] * 8)}, "its rows are not those of one episode after another"),
        ({"terminated": torch.ones(18)}, "an episode terminates before its last row"),
        ({"obs": torch.ones(18, 128)}, "obs has 128 numbers, walker-walk has 24"),
        ({"action": torch.full((18, 6), 3.0)}, "an action is 3 times its bound"),
        ({"reward": torch.ones(18, dtype=torch.int64)}, "reward has the shape [18] of torch.int64"),
        ({"obs": torch.full((18, 24), torch.inf)}, "inf"),
    ],
)
def test_damaged_demonstrations_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Tensor], message: str
) -> None:
    fields = rows(**changes)
    path = write(tmp_path / "walker-walk.pt", fields)
    assert message in refused(capsys, "import", path, tmp_path / "store", "form=mmbench")
    assert not (tmp_path / "store").exists()


def test_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "walker-walk.pt"
    torch.save({"obs": print}, path)
    assert "loading it would run" in refused(capsys, "import", path, tmp_path / "store", "form=mmbench")
    write(tmp_path / "stranger.pt", rows())
    said = refused(capsys, "import", tmp_path / "stranger.pt", tmp_path / "store", "form=mmbench")
    assert "is not named after a task that is known here" in said


def test_demonstrations_with_a_wrong_bit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of TensorDicts has checksums, as chunk files have; again it must not go on from what was read before."""
    path = write(tmp_path / "walker-walk.pt", rows())
    with open(path, "rb") as file:
        record = next(record for record in read_directory(path, file) if record.name.endswith("/data/0"))
    content = bytearray(path.read_bytes())
    content[record.offset + 9] ^= 1  # of a mantissa
    path.write_bytes(content)
    for _ in range(2):
        assert "Bad CRC-32" in refused(capsys, "import", path, tmp_path / "store", "form=mmbench")
    assert not (tmp_path / "store").exists()


def test_import_does_not_go_on_where_another_of_its_files_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes of Arrow have a file each, beside the one that describes them all."""
    path, beside = write(tmp_path / "walker-walk.pt", rows()), tmp_path / "beside"
    beside.write_text("first")
    target = task_of(path, None, None)
    monkeypatch.setattr(Demonstrations, "files", [path, beside])
    monkeypatch.setattr(foreign, "StoreMeta", partial(StoreMeta, block=1))

    def begun(said: str) -> bool:
        lines: list[str] = []
        with monkeypatch.context() as patch:
            write_until(patch, 2, Interrupt())
            patch.setattr(importer, "say", lines.append)
            with pytest.raises(Interrupt):
                import_foreign(Demonstrations.open(path, target), target, tmp_path / "store")
        return any(line.startswith(said) for line in lines)

    assert begun("Importing")
    assert begun("Continuing: 2 of 3")
    beside.write_text("another")
    assert begun("Starting afresh")
