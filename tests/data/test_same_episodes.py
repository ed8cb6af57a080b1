"""Teacher outputs of episodes are taken over by every store that holds the same episodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tdmpc2.config import Config
from tdmpc2.data.store.same_episodes import fingerprint, same_episodes, take_over
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import COLUMNS, TeacherTargets, open_targets
from tdmpc2.data.store.verify_columns import verify_targets
from tdmpc2.data.tools.convert import to_store
from tdmpc2.tasks import TaskSpec
from tdmpc2.training import plan_labels
from tdmpc2.training.plan_labels import compute_plans
from tdmpc2.training.teacher_cache import compute_all
from tests.helpers.data import make_store
from tests.helpers.distillation import make_expert
from tests.helpers.teacher_cache import SHA256, content

SPECS = (TaskSpec("three-two", 3, 2, 8), TaskSpec("four-one", 4, 1, 8))
CFG = Config(
    task="two", task_specs=SPECS, model_size=None, enc_dim=16, mlp_dim=16, latent_dim=16, task_dim=8, num_q=3,
    num_samples=16, num_elites=4, num_pi_trajs=4, iterations=2, device="cpu", compile="false",
)  # fmt: skip


@pytest.fixture
def old(tmp_path: Path) -> EpisodeStore:
    return make_store(tmp_path / "old", CFG, episodes=4, seed=1)


@pytest.fixture
def grown(tmp_path: Path, old: EpisodeStore) -> EpisodeStore:
    """Make a store of more episodes, followed by those of the old store."""
    more = make_store(tmp_path / "more", CFG, episodes=3, seed=2)
    return to_store([str(more.path), str(old.path)], tmp_path / "grown")


def columns(store: EpisodeStore) -> list[TeacherTargets]:
    made = {"plan": {"num_samples": 16}}
    return [open_targets(store, SHA256, "teacher.pt", name, made.get(name)) for name in COLUMNS]


def compute(own: list[TeacherTargets]) -> None:
    teacher = make_expert(CFG)
    compute_all([column for column in own if column.name != "plan"], teacher)
    compute_plans(own[-1], teacher, at_once=3)


def test_columns_taken_over_and_completed_are_those_computed_from_nothing(
    old: EpisodeStore, grown: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes may lie at another place in the new store, and a damaged number is computed again."""
    sources, own = columns(old), columns(grown)
    compute(sources)
    sources[0].values[2, 3] = 7.0  # no longer fits its check number
    same = same_episodes(grown, old)
    assert [take_over(column, source, same) for column, source in zip(own, sources, strict=True)] == [3, 4, 4, 4]
    planned: list[int] = []
    original = plan_labels.planned_actions
    monkeypatch.setattr(plan_labels, "planned_actions", lambda *args: planned.append(args[4]) or original(*args))
    compute(own)
    assert len(set(planned)) == 3  # episodes, of which none is an old one
    assert verify_targets(grown) == []
    anew = columns(to_store([str(grown.path)], tmp_path / "again"))
    compute(anew)
    for column, other in zip(own, anew, strict=True):
        if column.name == "plan":
            assert content(column)["plan.npy"] == content(other)["plan.npy"]  # random numbers follow from the content
        torch.testing.assert_close(column.values, other.values, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert [take_over(column, source, same) for column, source in zip(own, sources, strict=True)] == [0] * 4


def test_fingerprint_of_an_episode_tells_its_task_and_content(old: EpisodeStore, grown: EpisodeStore) -> None:
    prints = [fingerprint(grown, episode) for episode in range(len(grown.task))]
    assert len(set(prints)) == 7
    assert {fingerprint(old, episode) for episode in range(4)} <= set(prints)


def test_columns_of_other_settings_or_other_data_are_not_taken_over(
    old: EpisodeStore, grown: EpisodeStore, tmp_path: Path
) -> None:
    source = open_targets(old, SHA256, "teacher.pt", "plan", {"num_samples": 16})
    column = open_targets(grown, SHA256, "teacher.pt", "plan", {"num_samples": 32})
    with pytest.raises(ValueError, match=r"made in another way \(num_samples was 16 and is now 32\): leave .* known"):
        take_over(column, source, {})
    half = to_store([str(old.path)], tmp_path / "half", dtype="float16")
    with pytest.raises(ValueError, match=r"half holds other rows than .*grown: leave it out of known"):
        same_episodes(grown, half)
    specs = (SPECS[0], TaskSpec("four-two", 4, 2, 8))
    other = make_store(tmp_path / "other", CFG.replace(task_specs=specs), episodes=2)
    with pytest.raises(ValueError, match=r"other holds other tasks than .*grown: leave it out of known"):
        same_episodes(grown, other)
