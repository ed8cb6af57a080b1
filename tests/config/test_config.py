"""The configuration: keys, conversions, validation, what is derived, and the YAML files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tdmpc2.config import CHANGEABLE, MODEL_SIZES, RUN_KEYS, Config, check_keys, defaults, key_names, parse_cfg
from tdmpc2.tasks import MT30, MT80, TaskSpec, lookup
from tests.helpers.reference import REPO

#: The reference's student file; batch size and distillation weight as docs/algorithm.md, "Departures", has them.
SPECIFIED = {
    "task": "mt30", "obs": "state", "eval_episodes": 10, "steps": 200_000, "batch_size": 256, "reward_coef": 0.1,
    "value_coef": 0.1, "consistency_coef": 20, "rho": 0.5, "lr": 3e-4, "enc_lr_scale": 0.3, "grad_clip_norm": 20,
    "tau": 0.01, "discount_denom": 5, "discount_min": 0.95, "discount_max": 0.995, "buffer_size": 1_000_000,
    "mpc": True, "iterations": 6, "num_samples": 512, "num_elites": 64, "num_pi_trajs": 24, "horizon": 3,
    "min_std": 0.05, "max_std": 2, "temperature": 0.5, "log_std_min": -10, "log_std_max": 2, "entropy_coef": 1e-4,
    "num_bins": 101, "vmin": -10, "vmax": 10, "distillation_temperature": 2.0, "distillation_weight": 0.45,
    "model_size": 1, "num_enc_layers": 2, "enc_dim": 256, "mlp_dim": 384, "latent_dim": 128, "num_q": 2,
    "task_dim": 96, "dropout": 0.01, "simnorm_dim": 8, "num_channels": 32, "wandb_silent": False,
    "disable_wandb": False, "save_csv": True, "save_video": False, "save_agent": True, "seed": 1,
}  # fmt: skip

WIDTHS = {"model_size": None, "enc_dim": 32, "mlp_dim": 40, "latent_dim": 48, "task_dim": 8, "num_q": 3}
NUMBERS = [f.name for f in dataclasses.fields(Config) if f.type in ("int", "float", "int | None")]


def fail(match: str, **changes: Any) -> None:
    with pytest.raises(ValueError, match=match):
        parse_cfg(changes, "student_config")


# Defaults and files


def test_defaults_equal_the_reference() -> None:
    assert {name: getattr(Config(), name) for name in SPECIFIED} == SPECIFIED
    assert tuple(defaults()) == key_names()
    assert Config(**defaults()) == Config()


def test_config_defaults_are_plain_yaml_values() -> None:
    assert OmegaConf.to_container(OmegaConf.create(defaults())) == defaults()


def test_key_tables_name_existing_keys() -> None:
    assert set(key_names()) >= RUN_KEYS
    assert set(key_names()) >= CHANGEABLE
    assert not CHANGEABLE & {
        "seed",
        "batch_size",
        "checkpoint",
        "task",
        "tasks",
        "horizon",
        "lr",
        "distillation_weight",
    }


@pytest.mark.parametrize("path", sorted((REPO / "student_config").glob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_file_parses_to_config(path: Path) -> None:
    content = OmegaConf.load(path)
    assert content.pop("defaults") == ["base", "_self_"]  # what is not in the file comes from Config
    cfg = parse_cfg(content, str(path))
    assert cfg.task == "mt30"
    assert "hydra" not in content


def test_student_yaml_equals_defaults() -> None:
    content = OmegaConf.load(REPO / "student_config" / "config_mt30.yaml")
    del content["defaults"]
    assert parse_cfg(content) == Config()


# Keys


def test_parse_cfg_unknown_key_suggests_the_nearest() -> None:
    fail(r"^Unknown key 'stepz' in student_config\. Did you mean 'steps'\?$", stepz=1)
    fail(r"^Unknown key 'zzzzzz' in student_config\.$", zzzzzz=1)
    with pytest.raises(ValueError, match=r"'batchsize'.*'batch_size'"):
        Config().replace(batchsize=2)
    check_keys(key_names(), "all of them")


def test_parse_cfg_derived_field_is_refused() -> None:
    assert "task_specs" not in key_names()
    with pytest.raises(ValueError, match="task_specs"):
        check_keys(["task_specs"], "here")


def test_config_is_frozen_and_hashable() -> None:
    cfg = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.steps = 5  # type: ignore[misc]
    assert hash(cfg) == hash(Config())
    assert cfg.replace(steps=5).steps == 5
    assert cfg.steps == 200_000


# Conversions


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("steps", "1e6", 1_000_000), ("steps", "1000*5", 5000), ("steps", " 2e3 + 1 ", 2001), ("steps", 5e3, 5000),
        ("steps", "50_000", 50_000), ("steps", "9/3", 3), ("steps", "10-3", 7), ("lr", "3e-4", 3e-4), ("lr", 1, 1.0),
        ("lr", "1e-3*0.5", 5e-4), ("vmin", "-10", -10.0), ("vmin", "-5-5", -10.0), ("model_size", "5", 5),
        ("num_threads", "2", 2), ("num_threads", None, None),
        ("exp_name", "3-5-ablation", "3-5-ablation"), ("exp_name", "1*2", "1*2"), ("exp_name", "1e6", "1e6"),
        ("exp_name", 7, "7"), ("exp_name", 0.45, "0.45"), ("wandb_project", "3/4", "3/4"),
        ("compile", True, "true"), ("compile", False, "false"), ("device", "cuda:1", "cuda:1"),
        ("data_dir", Path("a/b"), "a/b"), ("checkpoint", None, None),
        ("tasks", "walker-walk", ("walker-walk",)), ("tasks", "walker-walk, cup-spin", ("walker-walk", "cup-spin")),
        ("tasks", ["cup-spin"], ("cup-spin",)), ("tasks", None, None),
    ],
)  # fmt: skip
def test_parse_cfg_text_value_is_converted(name: str, given: Any, expected: Any) -> None:
    value = getattr(parse_cfg({name: given}), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("name", ["checkpoint", "data_dir", "work_dir", "compare"])
def test_config_path_with_tilde_is_expanded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert getattr(parse_cfg({name: "~/runs/x"}), name) == "/home/someone/runs/x"


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("steps", 2.5), ("steps", "many"), ("steps", "1*2*3"), ("steps", "1/0"), ("steps", True), ("steps", None),
        ("steps", ""), ("steps", "1e400"), ("steps", [1]), ("lr", "fast"), ("lr", False), ("lr", "nan"),
        ("mpc", 1), ("mpc", "yes"), ("mpc", None), ("device", None), ("exp_name", True), ("exp_name", ["a"]),
        ("checkpoint", {"a": 1}), ("tasks", 5), ("tasks", {"walker-walk": 1}),
    ],
)  # fmt: skip
def test_config_value_of_wrong_type_names_key_and_value(name: str, given: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}="):
        parse_cfg({name: given})


@pytest.mark.parametrize("name", NUMBERS)
def test_config_number_not_finite_is_refused(name: str) -> None:
    for value in (float("nan"), float("inf"), float("-inf"), "inf", "0/0"):
        with pytest.raises(ValueError, match=f"^{name}=.*finite"):
            parse_cfg({name: value})


@pytest.mark.parametrize("name", sorted(set(key_names()) - {"task"}))
def test_config_key_of_wrong_type_is_refused(name: str) -> None:
    for value in ({"a": 1}, object()):
        with pytest.raises(ValueError, match=f"^{name}=.*must be"):
            parse_cfg({name: value})


@given(left=st.integers(-10_000, 10_000), right=st.integers(1, 10_000), operator=st.sampled_from("+-*/"))
def test_parse_cfg_arithmetic_is_evaluated(left: int, right: int, operator: str) -> None:
    expected = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[operator]
    cfg = Config(vmin=f"{left} {operator} {right}", vmax=10**9)  # type: ignore[arg-type]
    assert cfg.vmin == pytest.approx(expected)


# Values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": "rgb"}, "obs=rgb learns one task"),
        ({"obs": "rgb", "task": "cup-catch", "mode": "offline"}, "obs=rgb learns online: .*Leave out data_dir"),
        ({"model_size": 2}, "model_size=2 is not one of 1, 5, 19, 48, 317, null"),
        ({"policy_loss": "sac"}, "policy_loss=sac is not one of auto, opt, tdmpc2, squashed"),
        ({"precision": "fp8"}, "precision=fp8 is not one of auto, fp32, bf16, fp16"),
        ({"compile": "maybe"}, "compile=maybe is not one of"),
        ({"rho": 1.1}, "rho=1.1 must be between 0 and 1"),
        ({"dropout": 1}, "dropout=1.0"),
        ({"tau": -0.1}, "tau=-0.1"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"num_samples": 63, "num_elites": 64}, "num_samples=63 must be at least num_elites=64"),
        ({"num_samples": 64, "num_elites": 4, "num_pi_trajs": 64}, "more than num_pi_trajs=64"),
        ({**WIDTHS, "latent_dim": 44}, "latent_dim=44 must be a multiple of simnorm_dim=8"),
        ({**WIDTHS, "num_q": 1}, "num_q=1 must be at least 2"),
        ({"vmin": 10}, "vmin=10.0 must be below vmax=10.0"),
        ({"log_std_min": 3}, "log_std_min=3.0 must be below log_std_max=2.0"),
        ({"discount_min": 0.999}, "discount_min=0.999 must be below discount_max=0.995"),
        ({"discount_max": 1.5}, "discount_max=1.5"),
        ({"min_std": 3}, "min_std=3.0 must not exceed max_std=2.0"),
        ({"num_bins": 1}, "num_bins=1 must be at least 2"),
        ({"distillation_temperature": 0}, "distillation_temperature=0.0"),
        ({"num_threads": 0}, "num_threads=0 must be at least 1"),
        ({"horizon": 501}, "horizon=501 must be at most 500, the length of the shortest episode"),
        ({"task": "mt80", "horizon": 101}, "horizon=101 must be at most 100"),
    ],
)
def test_config_value_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    fail(message, **changes)


def test_config_count_of_zero_is_refused() -> None:
    for name in ("steps", "batch_size", "iterations", "horizon", "eval_episodes", "episodes_per_task", "log_freq",
                 "save_freq", "buffer_size", "num_elites", "num_pi_trajs", "num_enc_layers"):  # fmt: skip
        fail(f"{name}=0 must be at least 1", **{**WIDTHS, name: 0})
    assert Config(eval_freq=0).eval_freq == 0  # 0 means never


def test_config_value_at_boundary_is_allowed() -> None:
    Config(num_samples=64, num_elites=64, num_pi_trajs=63, rho=0, tau=1, dropout=0, min_std=2, lr=0)


# Tasks


def test_config_of_task_set_has_its_facts() -> None:
    mt30, mt80 = Config(), parse_cfg({"task": "mt80"})
    assert mt30.multitask
    assert mt30.task_names == MT30
    assert mt30.task_ids == tuple(range(30))
    assert (mt30.obs_dim, mt30.action_dim) == (24, 6)
    assert mt80.task_names == MT80
    assert mt80.task_names[:30] == MT30
    assert (mt80.obs_dim, mt80.action_dim, len(mt80.task_ids)) == (39, 6, 80)


def test_config_of_single_task_has_no_embedding() -> None:
    cfg = parse_cfg({"task": "walker-walk"})
    assert not cfg.multitask
    assert (cfg.task_names, cfg.task_ids, cfg.task_dim) == (("walker-walk",), (0,), 0)
    assert parse_cfg({"task": "walker-walk", **WIDTHS}).task_dim == 0


def test_config_of_unlisted_task_takes_its_environments_facts() -> None:
    assert parse_cfg({"task": "Pendulum-v1"}).task_specs == (TaskSpec("Pendulum-v1", 3, 1, 200),)
    own = TaskSpec("mine", 7, 2, 50)
    cfg = parse_cfg({"task": "mine", "task_specs": (own,)})
    assert (cfg.obs_dim, cfg.action_dim, cfg.discounts) == (7, 2, (0.95,))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("walker-wlak", "'walker-wlak'.*'walker-walk'"),
        ("mt31", "'mt31'.*'mt30'"),
        ("Pendulun-v1", "task=Pendulun-v1 in student_config: .*Pendulum"),
        ("no_such_package:Thing-v0", "task=no_such_package:Thing-v0 in student_config: .*no_such_package"),
        ("", "Unknown task ''"),
    ],
)
def test_config_of_unknown_task_is_refused(task: str, message: str) -> None:
    fail(message, task=task)


def test_config_of_task_subset_keeps_ids_and_padding() -> None:
    cfg = parse_cfg({"tasks": ["pendulum-spin", "walker-walk"]})
    assert cfg.task_ids == (29, 1)  # in the order given
    assert (cfg.obs_dim, cfg.action_dim, len(cfg.task_specs)) == (24, 6, 30)
    assert cfg.replace(tasks=None).task_ids == tuple(range(30))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("mw-p*-wall", ["mw-pick-place-wall", "mw-push-wall"]),
        ("mw-door-*,walker-*,cup-catch", ["walker-stand", "walker-walk", "walker-run", "cup-catch",
         "walker-walk-backwards", "walker-run-backwards", "mw-door-open", "mw-door-close", "mw-door-lock",
         "mw-door-unlock"]),
        (["walker-ru*", "walker-run", "walker-*run*"], ["walker-run", "walker-run-backwards"]),
        (["mw-reac?", "*-reach"], ["mw-reach"]),
    ],
)  # fmt: skip
def test_config_of_patterns_chooses_what_they_match_in_the_order_of_the_set(
    wanted: str | list[str], found: list[str]
) -> None:
    cfg = parse_cfg({"task": "mt80", "tasks": wanted})
    assert cfg.tasks == tuple(found)
    assert Config(**cfg.to_dict()) == cfg
    assert cfg.replace(tasks=["mw-*"]).task_ids == tuple(range(30, 80))


def test_config_of_a_pattern_that_matches_nothing_is_refused() -> None:
    fail(r"the pattern 'mw-\*' matches none of the tasks of task set 'mt30' \(walker-stand, ", tasks=["cup-*", "mw-*"])
    fail("'walker-wlak' is not in task set", tasks=["cup-*", "walker-wlak"])


def test_config_of_wrong_subset_is_refused() -> None:
    fail("'walker-wlak' is not in task set 'mt30'.*'walker-walk'", tasks=["walker-wlak"])
    fail(
        r"'dog-run' is not in task set 'mt30' \(walker-stand, walker-walk, walker-run, cheetah-run and 26 others\)\. "
        r"It is known: list the tasks that you want in a file and set task=my_set\.yaml\.",
        tasks=["dog-run"],
    )
    fail("'mw-reach' is not in .* It is known: set task=mt80, or list the tasks that", tasks=["mw-reach", "cup-spin"])
    fail(r"tasks=\[\] must name at least one", tasks=[])
    fail("each once", tasks=["cup-spin", "cup-spin"])
    fail("'cup-spin' is not in task set 'walker-walk'", task="walker-walk", tasks=["cup-spin"])


def test_config_replace_of_task_changes_its_facts() -> None:
    cfg = Config().replace(task="cartpole-swingup")
    assert (cfg.task_specs, cfg.task_dim) == ((lookup("cartpole-swingup"),), 0)


# What is derived


@pytest.mark.parametrize(
    ("size", "task", "latent_dim", "num_q", "task_dim"),
    [
        (1, "mt30", 128, 2, 96), (5, "mt30", 512, 5, 64), (19, "mt30", 512, 5, 64), (48, "mt30", 768, 5, 64),
        (317, "mt30", 1376, 8, 96), (1, "mt80", 128, 2, 96), (5, "mt80", 512, 5, 96), (19, "mt80", 768, 5, 96),
        (48, "mt80", 768, 5, 96), (317, "mt80", 1376, 8, 96), (19, "walker-walk", 768, 5, 0),
        (1, "cup-spin", 128, 2, 0),
    ],
)  # fmt: skip
def test_config_model_size_decides_widths(size: int, task: str, latent_dim: int, num_q: int, task_dim: int) -> None:
    cfg = parse_cfg(
        {
            "task": task,
            "model_size": size,
        }
    )
    assert (cfg.latent_dim, cfg.num_q, cfg.task_dim) == (latent_dim, num_q, task_dim)
    assert (cfg.enc_dim, cfg.mlp_dim) == (MODEL_SIZES[size]["enc_dim"], MODEL_SIZES[size]["mlp_dim"])


def test_config_without_model_size_takes_widths() -> None:
    cfg = parse_cfg(WIDTHS)
    assert {name: getattr(cfg, name) for name in WIDTHS} == WIDTHS


@pytest.mark.parametrize(("length", "expected"), [(5, 0.95), (100, 0.95), (200, 0.975), (500, 0.99), (5000, 0.995)])
def test_discount_of_task_follows_episode_length(length: int, expected: float) -> None:
    cfg = Config(task="mine", task_specs=(TaskSpec("mine", 1, 1, length),))
    assert cfg.discounts == (pytest.approx(expected),)


def test_config_has_one_discount_per_task() -> None:
    assert parse_cfg({"task": "mt80"}).discounts == (pytest.approx(0.99),) * 30 + (pytest.approx(0.95),) * 50
    assert Config(discount_max=0.98).discounts == (0.98,) * 30


def test_config_derives_iterations_and_bins() -> None:
    assert Config().plan_iterations == 6
    assert parse_cfg({"task": "dog-run", "iterations": 4}).plan_iterations == 6
    cfg = parse_cfg({"task": "dog-run"}).replace(seed=2).replace(seed=3)
    assert (cfg.iterations, cfg.plan_iterations) == (6, 8)  # derived anew and not added twice
    assert Config().bin_size == pytest.approx(0.2)


def test_run_directory_follows_task_seed_and_name() -> None:
    assert Config().run_dir == Path("logs/mt30/1/default")
    assert Config(seed=3, exp_name="3-5-ablation").run_dir == Path("logs/mt30/3/3-5-ablation")
    assert Config(work_dir="elsewhere", exp_name="x").run_dir == Path("elsewhere")


# Round trips


@pytest.mark.parametrize(
    "changes",
    [{}, {"task": "mt80", "tasks": ("mw-reach", "cup-spin")}, {"task": "Pendulum-v1"}, WIDTHS, {"model_size": 19}],
)
def test_to_dict_round_trip_is_equal(changes: dict[str, Any]) -> None:
    cfg = parse_cfg({"lr": "1e-4", "compile": True, **changes})
    plain = cfg.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert Config(**plain) == cfg
    assert parse_cfg(plain) == cfg
    assert set(plain) == {*key_names(), "task_specs"}
    assert parse_cfg(OmegaConf.create({k: v for k, v in plain.items() if k != "task_specs"})) == cfg


@pytest.mark.parametrize("key", ["collect_num_samples", "collect_iterations"])
def test_budget_of_plans_needs_plans(key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}=64 is of plans, and mpc=false makes none"):
        Config(task="walker-walk", mode="online", mpc=False, **{key: 64})


def test_share_of_the_policy_needs_plans() -> None:
    with pytest.raises(ValueError, match=r"collect_policy=0.5 .* mpc=false plans for none"):
        Config(task="walker-walk", mode="online", collect_policy=0.5, mpc=False)
