"""ManiSkill's tasks without a graphics device, and tasks whose files have to be downloaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tdmpc2.envs import make_env, task_spec

pytest.importorskip("mani_skill", reason="ManiSkill is not installed: make setup EXTRAS=envs")

from tdmpc2.envs.mani_skill import ManiSkillEnv, can_draw


@pytest.mark.parametrize("name", ["pick-ycb", "turn-faucet"])
def test_task_whose_files_are_missing_names_the_command(name: str) -> None:
    """ManiSkill itself would wait for an answer on the console, which nobody may read."""
    with pytest.raises(ValueError, match=rf"Task '{name}' needs files .* -m mani_skill.utils.download_asset \w+-v1"):
        task_spec(name)


@pytest.mark.skipif(can_draw(), reason="there is a graphics device here")
def test_images_without_a_graphics_device_are_refused() -> None:
    with pytest.raises(ValueError, match="no device for that was found here"):
        make_env("ms-push-cube", render_mode="rgb_array")


def test_body_without_its_looks_keeps_mass_and_shape() -> None:
    env = ManiSkillEnv("ms-push-cube", seed=1)
    env.reset()
    cube = env._simulator.obj
    assert cube.mass.item() == pytest.approx(1000 * 0.04**3)  # 4 cm of density 1000
    assert len(cube.get_collision_meshes(first_only=False)) == 1
    env.close()


def test_action_is_held_for_two_steps_of_the_simulator() -> None:
    env = ManiSkillEnv("ms-push-cube", seed=1)
    env.reset()
    before = int(env._simulator.elapsed_steps)
    env.step(np.zeros(4, np.float32))
    assert int(env._simulator.elapsed_steps) - before == 2
    env.close()


def test_episodes_without_a_seed_follow_from_the_environments_own() -> None:
    """They were drawn from PyTorch's own random numbers, which other environments and the user's code share."""
    firsts = []
    for seed in (5, 6):
        env = ManiSkillEnv("ms-push-cube", seed=1)
        torch.manual_seed(seed)
        firsts.append([env.reset()[0] for _ in range(3)])
        env.close()
    np.testing.assert_array_equal(*firsts)
    assert not np.array_equal(firsts[0][1], firsts[0][2])
