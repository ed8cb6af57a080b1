"""Held-out errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.commands import heldout
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.nn.math import decode
from tdmpc2.play.collector import collect
from tdmpc2.studies.agreement import RANKS
from tdmpc2.studies.heldout import heldout_batches, heldout_errors
from tdmpc2.studies.report import markdown
from tdmpc2.studies.runs import read_study
from tdmpc2.studies.summary import rows_of
from tdmpc2.training.offline import train
from tests.helpers.runs import TASKS


def test_heldout_errors_match_values_by_hand(tiny_cfg: Config) -> None:
    agent, teacher = TDMPC2(tiny_cfg.replace(seed=3)), TDMPC2(tiny_cfg.replace(seed=4, enc_dim=24))
    generator = torch.Generator().manual_seed(0)
    for network in (agent, teacher):  # the last layers start at zero
        for param in network.model.parameters():
            param.data += 0.1 * torch.randn(param.shape, generator=generator)
    batches = [
        Batch(
            torch.randn(4, 5, 24, generator=generator),
            torch.rand(3, 5, 6, generator=generator),
            torch.rand(3, 5, 1, generator=generator),
            torch.randint(30, (5,), generator=generator),
        )
        for _ in range(2)
    ]
    sums = dict.fromkeys(("reward", "horizon", "latent", "value", "values"), 0.0)
    with torch.no_grad():
        for obs, action, reward, task, *_ in batches:
            for b in range(5):
                z = agent.model.encode(obs[0, b], task[b])
                for t in range(3):
                    own, theirs = (
                        decode(m.Q(latent, action[t, b], task[b], "all"), m.bins).mean().item()
                        for m, latent in ((agent.model, z), (teacher.model, teacher.model.encode(obs[t, b], task[b])))
                    )
                    sums["value"] += (own - theirs) ** 2 / 10 if t == 0 else 0
                    sums["values"] += (own - theirs) ** 2 / 30
                    error = decode(agent.model.reward(z, action[t, b], task[b]), agent.model.bins) - reward[t, b]
                    sums["reward"] += error.item() ** 2 / 10 if t == 0 else 0
                    sums["horizon"] += error.item() ** 2 / 30
                    z = agent.model.next(z, action[t, b], task[b])
                    truth = agent.model.encode(obs[t + 1, b], task[b])
                    sums["latent"] += (z - truth).square().mean().item() / 30
    errors = heldout_errors(agent, batches, teacher)
    names = {
        "reward": "reward_rmse",
        "horizon": "reward_horizon_rmse",
        "latent": "latent_rmse",
        "value": "value_rmse",
        "values": "value_horizon_rmse",
    }
    assert {name: errors[names[name]] for name in sums} == pytest.approx(
        {name: total**0.5 for name, total in sums.items()}, rel=1e-4
    )
    assert min(error for name, error in errors.items() if name not in RANKS) > 1e-3
    assert not any(name.startswith("value") or name in RANKS for name in heldout_errors(agent, batches))
    same = heldout_errors(agent, batches, agent)
    assert same["value_rmse"] == same["value_rmse_symlog"] == 0
    assert [same[name] for name in RANKS] == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="No batch"):
        heldout_errors(agent, [])
    with pytest.raises(ValueError, match=r"discount of walker-stand is 0.99, the teacher's 0.98"):
        heldout_errors(agent, batches, TDMPC2(tiny_cfg.replace(discount_max=0.98)))


def test_heldout_errors_that_are_not_finite_name_the_weights(tiny_cfg: Config) -> None:
    """A model whose weights overflow is refused, since its errors cannot be compared."""
    agent = TDMPC2(tiny_cfg)
    for param in agent.model._dynamics.parameters():
        param.data.fill_(1e30)
    batch = Batch(torch.ones(4, 5, 24), torch.zeros(3, 5, 6), torch.zeros(3, 5, 1), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"is (nan|inf): the weights of the model or its teacher are too large to use"):
        heldout_errors(agent, [batch])


def test_heldout_batches_follow_the_seed() -> None:
    data = EpisodeDataset.of(torch.randn(6, 11, 3), torch.randn(6, 11, 2), torch.randn(6, 11), torch.zeros(6).long())
    first, again, other = (list(heldout_batches(SliceSampler(data), 3, 4, 2, seed)) for seed in (12345, 12345, 12346))
    assert all(torch.equal(a.obs, b.obs) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].obs, other[0].obs)
    assert not torch.equal(first[0].obs, first[1].obs)


def test_heldout_command_writes_and_prints_errors(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(train(cfg, None))
    other = tmp_path / "other"
    collect(Config(tasks=TASKS, episodes_per_task=1, seed=5), None, other)
    options = ["--data", str(other), "--batches", "2", "--batch-size", "8", "--device", "cpu"]
    heldout.main([path, *options])
    assert not (cfg.run_dir / "heldout.json").exists()
    heldout.main([path, *options, "--teacher", path, "--write"])
    found = json.loads((cfg.run_dir / "heldout.json").read_text())
    assert (found["checkpoint"], found["step"], found["errors"]["value_rmse"]) == ("model.pt", 20, 0)
    (row,) = rows_of(study := read_study([cfg.run_dir]))
    assert row["heldout"] == found["errors"]
    copies = [tmp_path / "copies" / name for name in ("a.pt", "b.pt")]
    copies[0].parent.mkdir()
    for copy in copies:
        copy.write_bytes(Path(path).read_bytes())
    heldout.main([path, *map(str, copies), *options, "--write"])
    left = [json.loads((tmp_path / "copies" / f"heldout_{name}.json").read_text()) for name in "ab"]
    assert [one["checkpoint"] for one in left] == ["a.pt", "b.pt"]
    assert json.loads((cfg.run_dir / "heldout.json").read_text())["sha256"] == left[0]["sha256"]
    found = json.loads((cfg.run_dir / "heldout.json").read_text())
    text = markdown(study, [row])
    assert f"| {row['name']} | {found['errors']['reward_rmse']:.4f} | - |" in text
    before = (cfg.run_dir / "heldout.json").read_bytes()
    (cfg.run_dir / "ema.pt").write_bytes(Path(path).read_bytes())
    heldout.main([str(cfg.run_dir / "ema.pt"), *options, "--write"])
    assert (cfg.run_dir / "heldout.json").read_bytes() == before, "another checkpoint's errors have a file of their own"
    assert json.loads((cfg.run_dir / "heldout_ema.json").read_text())["checkpoint"] == "ema.pt"
    train(cfg.replace(steps=25), None)
    (row,) = rows_of(study := read_study([cfg.run_dir]))
    assert row["heldout"] == {}, "it is of an earlier step"
    assert "of step 20, not of the last one" in markdown(study, [row])
    capsys.readouterr()
    (link := tmp_path / "latest.pt").symlink_to(path)
    for arguments, message in (
        ([path, "--data", cfg.data_dir], f"was trained on {cfg.data_dir}"),
        ([str(link), "--data", cfg.data_dir], f"was trained on {cfg.data_dir}"),
        ([path, path, *options, "--write"], "one checkpoint of each name"),
    ):
        with pytest.raises(SystemExit):
            heldout.main(arguments)
        assert message in capsys.readouterr().err
