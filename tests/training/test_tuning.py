"""Fine-tuning a model of many tasks to one: what the file decides, what stays, and unknown tasks."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file, save_file
from tdmpc2.config import PARTS, WIDTHS, Config, parse_cfg
from tdmpc2.data.tools.verify import verify
from tdmpc2.loading import load_agent
from tdmpc2.play.actors import prior_actions, uniform_actions
from tdmpc2.play.evaluation import evaluate
from tdmpc2.play.explorer import Explorer
from tdmpc2.support.draws import numbered_generator
from tdmpc2.support.names import safe_name
from tdmpc2.tasks import TaskSpec, lookup
from tdmpc2.training.guards import STOPPED
from tdmpc2.training.new_task import embedding_losses
from tdmpc2.training.offline import train
from tdmpc2.training.online import train_online
from tdmpc2.training.saved_replay import replay_to_store
from tdmpc2.training.tuning import keys_from_checkpoint, load_start
from tests.helpers.online import SMALL, config, interrupt
from tests.helpers.reference import shared_file
from tests.helpers.runs import weights
from tests.helpers.toy_envs import FALLS, STANDS, STANDS_FOR
from tests.helpers.tuning import OTHERS, STANDS_SPEC, WIDE, file_of_many, tuned

UNKNOWN = OTHERS  # tasks of a file that does not know STANDS


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a file of three tasks, the second of which is STANDS."""
    return file_of_many(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a file of two tasks, neither of which is STANDS."""
    return file_of_many(tmp_path_factory.mktemp("without"), UNKNOWN)


# -- what the file decides --------------------------------------------------------------------------------------------


def test_tuning_keeps_sizes_tasks_and_padding_of_the_file(tmp_path: Path, many: Path) -> None:
    cfg = tuned(tmp_path, many)
    assert {name: getattr(cfg, name) for name in WIDE} == WIDE
    assert (cfg.task, cfg.task_names[1], cfg.tasks, cfg.tuned_task) == ("mt30", STANDS, (STANDS,), STANDS)
    assert (cfg.obs_dim, cfg.action_dim, cfg.envs) == (6, 3, (1,))
    assert cfg.replace(work_dir=None).run_dir.parts[:2] == ("logs", safe_name(STANDS))


def test_tuning_trains_the_row_of_its_task_alone_and_the_file_plays(tmp_path: Path, many: Path) -> None:
    path = train_online(tuned(tmp_path, many), None)
    before, after = weights(many), weights(path)
    changed = (before["_task_emb.weight"] != after["_task_emb.weight"]).any(1)
    assert changed.tolist() == [False, True, False]
    assert all((before[name] != after[name]).any() for name in before if name.endswith(".weight"))
    agent = load_agent(path, device="cpu", task=STANDS)
    assert agent.cfg.task_names == ("Other-v0", STANDS, "Another-v0")
    result = evaluate(agent, agent.cfg.replace(eval_episodes=2))
    assert [(task.task, len(task.returns)) for task in result.tasks] == [(STANDS, 2)]


def test_tuning_contradicted_sizes_are_said_as_offline(tmp_path: Path, many: Path) -> None:
    with pytest.raises(ValueError, match=r"Its sizes differ \(latent_dim 24 instead of 16.*set .*latent_dim=24"):
        train_online(tuned(tmp_path, many, model_size=None, latent_dim=16, mlp_dim=16, enc_dim=16, num_q=3), None)
    assert not (tmp_path / "run").exists()


def test_start_of_a_single_task_takes_the_sizes_of_its_file(tmp_path: Path, many: Path) -> None:
    alone = parse_cfg({"task": STANDS, "model_size": None, "latent_dim": 32, "num_bins": 51, "work_dir": "x"})
    TDMPC2(alone).save(tmp_path / "alone.pt")
    cfg = tuned(tmp_path, tmp_path / "alone.pt", steps=22)
    assert (cfg.latent_dim, cfg.num_bins, cfg.multitask, cfg.tuned_task) == (32, 51, False, None)
    train_online(cfg, None)


@pytest.mark.parametrize(("keys", "message"), [
    ({"task": "dog-run"}, "observations of 223 numbers and actions of 38, and .*many.pt takes at most 6 and 3"),
    ({"task": "cup-catch", "obs": "rgb"}, "obs=rgb: .*many.pt was trained with obs=state"),
    ({"freeze": ["critic"]}, "freeze: 'critic' is not one of encoder, dynamics, reward, Q, policy, task_embedding"),
    ({"freeze": ["termination"]}, "freeze: 'termination' is not of this model, which has encoder"),
    ({"freeze": ["encoder", "dynamics", "reward", "Q", "policy", "task_embedding"]}, "leaves nothing to train"),
    ({"reset": ["critic"]}, "reset: 'critic' is not one of encoder"),
    ({"reset": ["encoder", "dynamics", "reward", "Q", "policy", "task_embedding"]}, "leaves nothing of .*many.pt"),
    ({"reset": ["Q", "policy"], "freeze": ["dynamics", "Q"]}, "freeze and reset: Q would stay random"),
])  # fmt: skip
def test_tuning_that_cannot_be_is_refused(tmp_path: Path, many: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        tuned(tmp_path, many, **keys)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("key", "words"), [("freeze", "would keep random weights"), ("reset", "says what does not")])
def test_parts_without_a_file_are_refused(key: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"{key}=Q {words}"):
        Config(**{key: ("Q",)})


@pytest.mark.parametrize("reset", [["Q"], ["policy", "reward"], ["task_embedding"]])
def test_reset_parts_are_new_and_all_others_are_the_files(tmp_path: Path, many: Path, reset: list[str]) -> None:
    cfg = tuned(tmp_path, many, reset=reset)
    agent, new = TDMPC2(cfg), TDMPC2(cfg).model.state_dict()
    load_start(agent, cfg)
    of_file = TDMPC2(cfg)
    of_file.load(many)
    begun = tuple(f"{module}." for part in reset for module in PARTS[part])
    differing = set()
    for name, tensor in agent.model.state_dict().items():
        source = new if name.startswith(begun) else of_file.model.state_dict()
        if name == "_task_emb.weight" and "task_embedding" in reset:
            (row,) = cfg.task_ids
            assert torch.equal(tensor[row], new[name][row])
            tensor, source = torch.cat([tensor[:row], tensor[row + 1 :]]), of_file.model.state_dict()
            source[name] = torch.cat([source[name][:row], source[name][row + 1 :]])
        assert torch.equal(tensor, source[name]), name
        if not torch.equal(new[name], of_file.model.state_dict()[name]):
            differing.add(name)
    assert any(name.startswith(begun) for name in differing), "the file's part equals a new one"


def test_reset_part_may_have_other_sizes_than_in_the_file(tmp_path: Path) -> None:
    """A layer that only the file has is not taken for one that the run lacks."""
    deep = file_of_many(tmp_path, num_enc_layers=3)
    widths = {name: value for name, value in {**SMALL, **WIDE}.items() if name in ("model_size", *WIDTHS)}
    cfg = tuned(tmp_path, deep, reset=["encoder"], **{**widths, "num_enc_layers": 2})
    agent = TDMPC2(cfg)
    load_start(agent, cfg)
    assert torch.equal(agent.model.state_dict()["_reward.1.weight"], weights(deep)["_reward.1.weight"])


def test_reset_of_the_embedding_of_a_task_that_the_file_lacks_is_refused(tmp_path: Path, without: Path) -> None:
    cfg = tuned(tmp_path, without, reset=["task_embedding"])
    with pytest.raises(ValueError, match="leave task_embedding out of reset"):
        load_start(TDMPC2(cfg), cfg)


def test_reset_of_an_embedding_of_another_size_says_so(tmp_path: Path, many: Path) -> None:
    widths = {name: value for name, value in {**SMALL, **WIDE}.items() if name in ("model_size", *WIDTHS)}
    cfg = tuned(tmp_path, many, reset=["task_embedding"], **{**widths, "task_dim": 4})
    with pytest.raises(ValueError, match="set task_dim=6"):
        load_start(TDMPC2(cfg), cfg)


def test_termination_head_that_the_file_lacks_cannot_be_frozen(tmp_path: Path, many: Path) -> None:
    """It would end imagined episodes at random for the whole run."""
    cfg = tuned(tmp_path, many, episodic=True, freeze=["termination"])
    with pytest.raises(ValueError, match="no termination head, so that freeze=termination would keep random weights"):
        load_start(TDMPC2(cfg), cfg)


@pytest.mark.parametrize(("reset", "acts"), [([], True), (["Q"], True), (["policy"], False), (["encoder", "Q"], False)])
def test_seed_phase_is_random_where_the_policy_begins_anew(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch, reset: list[str], acts: bool
) -> None:
    seen: list[bool] = []
    original = Explorer.act

    def act(self: Explorer, step: int, **kwargs: Any) -> Any:
        seen.append(kwargs["prior"])
        return original(self, step, **kwargs)

    monkeypatch.setattr(Explorer, "act", act)
    train_online(tuned(tmp_path, many, reset=reset, steps=12), None)
    assert set(seen) == {acts}


def test_run_with_a_part_that_begins_anew_learns(tmp_path: Path, many: Path) -> None:
    trained = weights(train_online(tuned(tmp_path, many, reset=["Q"], steps=24, utd=0.3), None))
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())


def test_missing_file_is_left_to_the_checks_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights to start from: checkpoint=.*gone\.pt does not exist"):
        train_online(tuned(tmp_path, tmp_path / "gone.pt"), None)


def test_terminating_task_gets_a_head_that_the_file_lacks(tmp_path: Path, without: Path) -> None:
    """A model of tasks that never terminate is tuned to one that does."""
    cfg = tuned(tmp_path, without, FALLS, episodic=True, horizon=2, steps=24, utd=0.3)
    assert (cfg.rho, cfg.discount_max) == (0.7, 0.995)  # discounts are the file's
    trained = weights(train_online(cfg, None))
    assert (trained["_termination.2.weight"] != TDMPC2(cfg).model._termination[2].weight).any()


# -- precision --------------------------------------------------------------------------------------------------------


def test_half_precision_file_is_tuned_in_fp32(tmp_path: Path, many: Path) -> None:
    file = load_file(many)
    save_file(tmp_path / "half.pt", {"model": {k: v.half() for k, v in file.model.items()}, "config": file.config},
              overwrite=False)  # fmt: skip
    agent = TDMPC2(cfg := tuned(tmp_path, tmp_path / "half.pt"))
    load_start(agent, cfg)
    reward = agent.model._reward[2].weight
    assert torch.equal(reward, file.model["_reward.2.weight"].half().float())


@pytest.mark.parametrize("some", ["all", "one"])
def test_int8_file_is_refused(tmp_path: Path, many: Path, some: str) -> None:
    """Int8 and mixed files can act but not be trained."""
    file, model = load_file(many), {}
    for name, tensor in file.model.items():
        quantised = tensor.ndim > 1 and "emb" not in name and (some == "all" or name == "_reward.1.weight")
        model[name] = tensor.round().to(torch.int8) if quantised else tensor
        model |= {f"{name}.scale": torch.ones(1)} if quantised else {}
    save_file(tmp_path / "int8.pt", {"model": model, "config": file.config}, overwrite=False)
    with pytest.raises(ValueError, match=r"int8\.pt: its weights are quantised \((int8|mixed)\), which is for acting"):
        train_online(tuned(tmp_path, tmp_path / "int8.pt"), None)
    assert not (tmp_path / "run").exists()


# -- what stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [*([name] for name in PARTS if name != "termination"), ["encoder", "dynamics", "Q"],
                                    [name for name in PARTS if name not in ("policy", "termination")]])  # fmt: skip
def test_frozen_parts_stay_and_all_others_learn(tmp_path: Path, many: Path, freeze: list[str]) -> None:
    before, after = weights(many), weights(train_online(tuned(tmp_path, many, freeze=freeze, steps=24, utd=0.3), None))
    frozen = tuple(f"{module}." for part in freeze for module in PARTS[part])
    for name, tensor in before.items():
        same = torch.equal(tensor, after[name])
        assert same if name.startswith(frozen) else (not same or not name.endswith(".weight")), name


# -- the seed phase ---------------------------------------------------------------------------------------------------


def actions_of(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train a run and record its observations and actions, turn by turn."""
    turns = []
    original = Explorer.act

    def act(self: Explorer, step: int, **kwargs: Any) -> Any:
        obs = np.stack([self._episode(i).obs[-1] for i in range(len(self.task_ids))])
        turns.append((obs, original(self, step, **kwargs)))
        return turns[-1][1]

    monkeypatch.setattr(Explorer, "act", act)
    train_online(cfg, None)
    return turns


def test_seed_phase_acts_with_the_policy_of_the_file(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tuned(tmp_path, many, steps=25)
    agent = load_agent(many, device="cpu")
    for step, (obs, action) in enumerate(actions_of(cfg, monkeypatch)[:21], 1):
        expected = prior_actions(agent.model, obs, np.array([1]), numbered_generator(cfg.seed, step, 1))
        assert np.array_equal(action, expected)
        assert action[0, 2] == 0  # a padded dimension


# -- a task that the file does not know -------------------------------------------------------------------------------


def test_new_task_gets_a_row_of_its_own(
    tmp_path: Path, without: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Actions are uniform until an episode tells which embedding fits best; then the policy acts with it."""
    monkeypatch.setattr("tdmpc2.training.new_task.embedding_losses", lambda *_: torch.tensor([2.0, 1.0, 3.0]))
    cfg = tuned(tmp_path, without, steps=20, save_freq=5)
    turns = actions_of(cfg, monkeypatch)
    assert cfg.task_names == ("Other-v0", "Another-v0", STANDS)
    for step, (_, action) in enumerate(turns[:STANDS_FOR], 1):
        assert np.array_equal(action, uniform_actions(cfg, np.array([2]), numbered_generator(cfg.seed, step, 1)))
    agent = load_agent(cfg.run_dir / "model.pt", device="cpu", task=STANDS)
    for step, (obs, action) in enumerate(turns[STANDS_FOR:], STANDS_FOR + 1):  # there is no update before
        assert np.array_equal(action, prior_actions(agent.model, obs, np.array([2]), numbered_generator(1, step, 1)))
    rows, known = agent.model._task_emb.weight, weights(without)["_task_emb.weight"]
    assert torch.equal(rows[:2], known)
    assert torch.allclose(rows[2], known[1] / known[1].norm().clamp(min=1), atol=1e-6)
    assert (
        f"{STANDS} is new to {without}. Its embedding starts as that of Another-v0 (1), by the loss on its first "
        "episodes; next is a fresh one (3)"
    ) in capsys.readouterr().out


def test_new_task_starts_fresh_if_no_row_serves_it_better(
    tmp_path: Path, without: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tdmpc2.training.new_task.embedding_losses", lambda *_: torch.tensor([2.0, 3.0, 1.0]))
    cfg = tuned(tmp_path, without, steps=20)
    row = weights(train_online(cfg, None))["_task_emb.weight"][2]
    assert torch.equal(row, TDMPC2(cfg).model._task_emb.weight[2])
    assert "starts as a fresh one (1), by the loss on its first episodes; next is that of Other-v0 (2)" in (
        capsys.readouterr().out
    )


def test_embedding_losses_are_those_of_the_update(without: Path, tmp_path: Path) -> None:
    """Each embedding is put in the place of the new one, and an update's losses are computed with it."""
    cfg = tuned(tmp_path, without)
    agent = TDMPC2(cfg)
    load_start(agent, cfg)
    generator = torch.Generator().manual_seed(0)
    size, horizon = 16, cfg.horizon
    batch: Any = {
        "obs": torch.randn(horizon + 1, size, cfg.obs_dim, generator=generator),
        "action": torch.rand(horizon, size, cfg.action_dim, generator=generator),
        "reward": torch.rand(horizon, size, 1, generator=generator),
        "task": torch.full((size,), 2),
    }
    from tdmpc2.data.batch import Batch

    found = embedding_losses(agent, Batch.from_any(batch))
    rows = agent.model._task_emb.weight.detach().clone()
    for row in range(3):
        with torch.no_grad():
            agent.model._task_emb.weight[2] = rows[row]
        twin = TDMPC2(cfg)
        twin.model.load_state_dict(agent.model.state_dict())
        stats = twin.update(batch)
        expected = 20 * stats["consistency_loss"] + 0.1 * stats["reward_loss"]
        assert torch.allclose(found[row], expected, rtol=1e-5)
    assert len(set(found.tolist())) == 3


def test_file_of_an_appended_task_is_tuned_again(tmp_path: Path, without: Path) -> None:
    """A tuned file knows its new task, so tuning it again adds none."""
    first = train_online(tuned(tmp_path, without, steps=10), None)
    cfg = tuned(tmp_path / "again", first, steps=10)
    assert cfg.task_names == ("Other-v0", "Another-v0", STANDS)
    assert load_start(TDMPC2(cfg), cfg) is None
    smaller = file_of_many(tmp_path, (OTHERS[0], TaskSpec(STANDS, 3, 2)))
    with pytest.raises(ValueError, match=f"knows another task called '{STANDS}': 3 observed numbers"):
        tuned(tmp_path, smaller)


def test_buffer_of_an_appended_task_is_demonstrations_or_data_of_this_task_alone(tmp_path: Path, without: Path) -> None:
    """No command could name the set of the file and one more task to learn offline; and the padding is the set's."""
    cfg = tuned(tmp_path, without, steps=20, save_freq=5)
    train_online(cfg, None)
    shown = replay_to_store(cfg.run_dir, tmp_path / "shown", quiet=True)
    assert shown.meta.tasks == cfg.task_specs
    train_online(tuned(tmp_path / "again", without, steps=20, demonstrations=str(shown.path)), None)
    store = replay_to_store(cfg.run_dir, tmp_path / "store", quiet=True, alone=True)
    assert (store.meta.task, store.meta.tasks) == (STANDS, (STANDS_SPEC,))
    assert store.index.lengths.unique().tolist() == [STANDS_FOR]
    assert not verify(store.path).problems
    alone = config(tmp_path / "alone", mode="offline", data_dir=str(store.path), steps=2)
    assert train(alone, None).exists()


def test_appended_task_is_padded_as_its_set(tmp_path: Path) -> None:
    wide = tuple(replace(spec, padding=(9, 5)) for spec in UNKNOWN)
    cfg = tuned(tmp_path, file_of_many(tmp_path, wide), steps=10)
    assert cfg.task_names == ("Other-v0", "Another-v0", STANDS)
    assert {spec.padding for spec in cfg.task_specs} == {(9, 5)}
    assert load_start(TDMPC2(cfg), cfg) == STANDS


# -- continuing -------------------------------------------------------------------------------------------------------


SHORT: dict[str, Any] = {"save_freq": 4, "freeze": ["dynamics"], "steps": 30, "utd": 0.4}


@pytest.fixture(scope="module", params=["known", "new"])
def undisturbed(request: pytest.FixtureRequest, many: Path, without: Path, tmp_path_factory: Any) -> tuple[Path, Path]:
    """Return the file that a run starts from, and the run."""
    start = many if request.param == "known" else without
    directory = tmp_path_factory.mktemp("undisturbed")
    return start, train_online(
        tuned(directory, start, save_freq=4, freeze=["dynamics"], steps=30, utd=0.4), None
    ).parent


@pytest.mark.parametrize("stop_at", [3, 10, 26])
@pytest.mark.parametrize("killed", [True, False])
def test_tuning_that_was_ended_continues_bit_for_bit(
    undisturbed: tuple[Path, Path], stop_at: int, killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends before a new task's embedding is chosen, in the seed phase, and after the burst."""
    start, straight = undisturbed
    cfg = tuned(tmp_path, start, **SHORT)

    def end() -> None:
        if killed:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGTERM)

    interrupt(monkeypatch, stop_at, end)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as ended:
        train_online(cfg, None)
    assert killed or ended.value.code == STOPPED  # type: ignore[union-attr]
    monkeypatch.undo()
    train_online(cfg, None)
    first, second = (torch.load(run / "state.pt", weights_only=True) for run in (straight, cfg.run_dir))
    assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items())
    assert str(first["parts"]) == str(second["parts"])
    assert (straight / "episodes.csv").read_bytes() == (cfg.run_dir / "episodes.csv").read_bytes()


def test_keys_of_a_run_without_a_file_stay(tmp_path: Path) -> None:
    keys = {"task": STANDS, "checkpoint": None, "model_size": 5}
    assert keys_from_checkpoint(keys, ()) == keys


@pytest.mark.slow
def test_published_student_is_tuned_to_one_of_its_tasks_and_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands run as they are typed, with a seed phase of one episode."""
    from tdmpc2.commands.evaluate import main as evaluate_main
    from tdmpc2.commands.train import main as train_main

    student = shared_file("checkpoints/mt30_1M_steps_045dist_fp16.pt")
    monkeypatch.chdir(tmp_path)
    line = "task=walker-walk steps=560 seed_steps=510 utd=0.1 eval_freq=0 batch_size=32 device=cpu num_threads=1"
    cheap = "num_samples=16 iterations=1 compile=false"
    train_main([*line.split(), *cheap.split(), f"checkpoint={student}"])
    model = Path("logs/walker-walk/1/default/model.pt")
    assert load_file(model).step == 560
    evaluate_main([str(model), "eval_episodes=1", "device=cpu", *cheap.split()])
    assert "walker-walk" in capsys.readouterr().out
    for kind in ("int8", "mixed"):
        file = shared_file(f"checkpoints/mt30_1M_steps_045dist_{kind}.pt")
        cfg = tuned(tmp_path / kind, file, "walker-walk")
        with pytest.raises(ValueError, match=rf"its weights are quantised \({kind}\)"):
            load_start(TDMPC2(cfg), cfg)


def test_reset_of_an_embedding_that_a_file_of_one_task_lacks_says_so(tmp_path: Path) -> None:
    alone = tmp_path / "alone.pt"
    TDMPC2(Config(task="cup-catch", task_specs=(lookup("cup-catch"),), **SMALL)).save(alone)
    cfg = parse_cfg({"task": "mt30", "mode": "offline", "checkpoint": str(alone), "reset": ["task_embedding"]})
    with pytest.raises(ValueError, match="the state dict does not fit the model"):
        load_start(TDMPC2(cfg), cfg)
