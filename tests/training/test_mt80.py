"""MT80 from stored episodes to an evaluation: learning, distilling, playing, and files of the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc2 import load_agent
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config
from tdmpc2.envs.registry import FAMILIES
from tdmpc2.play.collector import collect
from tdmpc2.play.evaluation import evaluate
from tdmpc2.tasks import MT80, TASKS
from tdmpc2.training.offline import train
from tests.helpers.data import save_raw
from tests.helpers.layouts import state_a, state_c
from tests.helpers.runs import TINY

PLAYED = ("pendulum-spin", "cup-catch", "mw-reach", "mw-drawer-close")
SMALL = {**TINY, "task": "mt80", "tasks": None, "batch_size": 8, "steps": 3, "log_freq": 1}

needs_meta_world = pytest.mark.skipif(
    not all(family.installed for family in FAMILIES if family.name == "Meta-World"),
    reason="Meta-World is not installed",
)


def write_made_rows(path: Path) -> None:
    """Write random numbers as an episode of each task that is not played, in a chunk of MT80."""
    gen = torch.Generator().manual_seed(0)
    others = [task for task in MT80 if task not in PLAYED]
    obs, action = torch.zeros(len(others), 101, 39), torch.zeros(len(others), 101, 6)
    for row, task in enumerate(others):
        spec = TASKS[task]
        obs[row, :, : spec.obs_dim] = torch.randn(101, spec.obs_dim, generator=gen)
        action[row, :, : spec.action_dim] = 2 * torch.rand(101, spec.action_dim, generator=gen) - 1
    reward = torch.rand(len(others), 101, generator=gen)
    action[:, 0] = reward[:, 0] = torch.nan
    number = torch.tensor([MT80.index(task) for task in others], dtype=torch.int32)
    save_raw(path, {"obs": obs, "action": action, "reward": reward, "task": number[:, None].expand(-1, 101).clone()})


@pytest.mark.slow
@needs_meta_world
def test_mt80_learns_distils_and_plays_its_own_tasks(tmp_path: Path) -> None:
    """Two tasks of each family are played at random and the others' data made up, from chunks to scores."""
    data = tmp_path / "data"
    collect(Config(task="mt80", tasks=PLAYED, episodes_per_task=1), None, data)
    write_made_rows(data / "chunk_100.pt")
    keys = {**SMALL, "data_dir": str(data)}
    teacher = train(Config(**keys, work_dir=str(tmp_path / "teacher")), None)
    narrow = {**keys, "enc_dim": 8, "mlp_dim": 8, "work_dir": str(tmp_path / "student")}
    student = train(Config(**narrow), Config(checkpoint=str(teacher)))

    before, after = (load_file(path).model for path in (teacher, student))
    assert before["_task_emb.weight"].shape == after["_task_emb.weight"].shape == (80, 8)
    agent = load_agent(student)
    assert (agent.cfg.task_names, agent.cfg.obs_dim, agent.cfg.action_dim) == (MT80, 39, 6)
    log = (tmp_path / "student" / "train.csv").read_text().splitlines()
    assert len(log) == 1 + 3

    result = evaluate(agent, agent.cfg.replace(tasks=PLAYED, eval_episodes=1), quiet=True)
    assert [task.task for task in result.tasks] == list(PLAYED)
    for task in result.tasks:
        (played,), (success,) = task.returns, task.successes
        assert np.isfinite(played)
        if task.task.startswith("mw-"):
            assert task.scores.tolist() == [100 * success]
        else:
            assert task.scores.tolist() == pytest.approx([played / 10])


@pytest.mark.slow
def test_mt80_file_in_the_layout_of_the_reference_acts_in_all_tasks(tmp_path: Path) -> None:
    state = state_a(enc=16, mlp=16, latent=16, tasks=80, emb=8, obs=39, action=6, bins=101)
    torch.save({"model": state_c(state, 2)}, path := tmp_path / "mt80-tiny.pt")
    agent = load_agent(path, num_samples=16, num_elites=4, num_pi_trajs=4, iterations=1)
    assert agent.cfg.task_names == MT80
    for name in MT80:
        spec = TASKS[name]
        action = np.asarray(agent.act(np.zeros(agent.cfg.obs_dim, np.float32), t0=True, task=name))
        assert action.shape == (6,)
        assert not action[spec.action_dim :].any()
        assert np.isfinite(action).all()
        assert np.abs(action).max() <= 1
