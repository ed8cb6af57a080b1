"""The configuration keys: every fact about a key stands on the key's own line.

What checkpoints store, what a continued run may change, the ranges, ``--help`` and docs/configuration.md are all
derived from these lines (:mod:`tdmpc2.config.tables`). Defaults are those of the 1M MT30 student.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdmpc2.config.facts import COMMANDS, MAY_CHANGE, ONE_START, PLAYING, RUN, key
from tdmpc2.config.mix import MixEntry, parse_mix
from tdmpc2.config.presets import PRESETS
from tdmpc2.config.teachers import TaskTeacher, parse_teachers
from tdmpc2.config.trackers import TRACKERS, parse_trackers

MOST_COEF = 1e9  # of a term of the loss: squares of its gradients are still float32


@dataclass(frozen=True, kw_only=True)
class Keys:
    """One agent and what is done with it, as typed."""

    task: str = key(
        "mt30", "what the model knows: task set (mt30, mt80, my_set.yaml), task, or Gymnasium id with its module",
        commands=COMMANDS, section="Task",
    )  # fmt: skip
    tasks: tuple[str, ...] | None = key(
        None,
        "the tasks of the set to use, or patterns such as mw-*; null: all. Ids and padding stay those of the set",
        commands=COMMANDS,
    )
    mode: str = key(
        "auto", "learn from stored episodes or by acting; auto: online for one task without data_dir, else offline",
        choices=("auto", "offline", "online"), scope=RUN, follows="task", decides=True,
    )  # fmt: skip
    obs: str = key(
        "state", "what is observed: the task's state, images (rgb), or both side by side (rgb+state)",
        choices=("state", "rgb", "rgb+state"), commands=COMMANDS,
    )  # fmt: skip
    seed: int = key(
        1, "random seed of all but the first states of evaluations", at_least=0, at_most=2**31 - 1, scope=RUN,
        commands=COMMANDS,
    )  # fmt: skip  # simulators take 32 bits

    checkpoint: str | None = key(
        None, "weights to start from (train) or to play (evaluate, collect), also hf://user/name or the name of a "
        "model that comes with the project; null: random weights or actions", path=True, scope=RUN, decides=True,
        commands=("train", "evaluate", "collect"), section="Files",
    )  # fmt: skip
    data_dir: str = key(
        None, "episode store, or directory of chunk_*.pt files; null: data/mt30", path=True, scope=RUN,
        follows="task", on_resume=MAY_CHANGE, commands=("train", "collect"),
    )  # fmt: skip
    exp_name: str | None = key(
        None, "name of the run; null: default, or the swept keys of a multirun", scope=RUN, on_resume=MAY_CHANGE,
        commands=("train", "evaluate"),
    )  # fmt: skip
    work_dir: str | None = key(
        None, "directory of the run; null: logs/<task>/<seed>/<exp_name>", path=True, scope=RUN, on_resume=MAY_CHANGE,
        commands=("train", "evaluate"),
    )  # fmt: skip

    data_device: str = key(
        "auto", "where the episodes lie while training", choices=("auto", "cuda", "cpu", "disk"), scope=RUN,
        on_resume=MAY_CHANGE, section="Data",
    )  # fmt: skip
    task_balance: str = key(
        "auto", "what is equally likely to be drawn: each episode, or each task; auto: each task where many are "
        "learned online", choices=("auto", "episodes", "tasks"), scope=RUN, follows="task", decides=True,
    )  # fmt: skip
    max_episodes_per_task: int | None = key(
        None, "train on so many episodes of each task, evenly spaced (learning online: of the demonstrations); null: "
        "all", at_least=1, scope=RUN, decides=True,
    )  # fmt: skip

    steps: int = key(
        200_000, "updates to train for; learning online: steps of the environments", at_least=1, scope=RUN,
        on_resume=MAY_CHANGE, decides=True, section="Training",
    )  # fmt: skip
    batch_size: int = key(256, "slices per update", at_least=1, sensible=2**24, scope=RUN, decides=True)
    reward_coef: float = key(0.1, "coefficient of the reward loss", at_least=0, sensible=MOST_COEF)
    value_coef: float = key(0.1, "coefficient of the value loss", at_least=0, sensible=MOST_COEF)
    consistency_coef: float = key(20.0, "coefficient of the consistency loss", at_least=0, sensible=MOST_COEF)
    rho: float = key(
        None, "weight of a loss at step t of the horizon is rho^t; null: 0.5, or 0.7 if episodic or one of TD-MPC2's "
        "tasks of Gymnasium", at_least=0, at_most=1, follows="episodic",
    )  # fmt: skip
    freeze: tuple[str, ...] = key(
        (), "parts of the model that stay as in checkpoint: encoder, dynamics, reward, Q, policy, termination, "
        "task_embedding", scope=RUN, decides=True,
    )  # fmt: skip
    reset: tuple[str, ...] = key(
        (), "parts of the model that begin anew instead of as in checkpoint, such as a Q of values that are too high",
        scope=RUN, decides=True,
    )  # fmt: skip
    lr: float = key(3e-4, "learning rate", at_least=0)
    enc_lr_scale: float = key(0.3, "learning rate of the encoder, relative to lr", at_least=0)
    lr_schedule: str = key(
        "constant", "how the learning rates fall during training, to lr_end times what they start with",
        choices=("constant", "linear", "cosine"), scope=RUN, decides=True,
    )  # fmt: skip
    lr_end: float = key(
        0.1, "share of the learning rates that is left at the end, with lr_schedule", at_least=0, at_most=1, scope=RUN,
        decides=True,
    )  # fmt: skip
    grad_clip_norm: float = key(20.0, "gradients are clipped to this norm", above=0)
    tau: float = key(0.01, "rate at which target Q heads follow the online ones", at_least=0, at_most=1)
    ema_decay: float = key(
        0.0, "decay of an average of the weights, written as ema.pt beside model.pt; 0: none. 0.999 forgets in 1,000 "
        "updates", at_least=0, at_most=0.999999, scope=RUN, decides=True,
    )  # fmt: skip
    discount_denom: float = key(5.0, "discount is (L/d - 1) / (L/d) for episodes of L steps, d this key", at_least=1e-6)
    discount_min: float = key(0.95, "lower bound of the discount", at_least=0, at_most=1)
    discount_max: float = key(
        None, "upper bound of the discount; null: 0.995, or 0.99 where rho is 0.7", at_least=0, at_most=1,
        follows="episodic",
    )  # fmt: skip
    policy_loss: str = key(
        "auto", "entropy term of the policy: TD-MPC-Opt's, current TD-MPC2's, or the entropy of its actions (squashed)",
        choices=("auto", "opt", "tdmpc2", "squashed"), follows="mode",
    )  # fmt: skip
    value_scale: str = key(
        "batch", "whose range of values scales the policy's loss: the whole batch's, or each task's own (per_task)",
        choices=("batch", "per_task"), scope=RUN, decides=True,
    )  # fmt: skip
    entropy_coef: float = key(1e-4, "coefficient of the policy's entropy", at_least=0, sensible=MOST_COEF)

    num_envs: int = key(
        1, "environments of each task that are stepped together", at_least=1, scope=RUN, decides=True,
        section="Learning online",
    )  # fmt: skip
    env_workers: int = key(
        0, "processes that step environments beside this one, where simulators or pictures are slow; 0: none",
        at_least=0, sensible=1024, scope=RUN, on_resume=MAY_CHANGE, commands=COMMANDS,
    )  # fmt: skip
    seed_steps: int = key(
        None, "steps with random actions (from a checkpoint: its policy's), before the first update; null: the largest "
        "of 1000 steps, 5 episodes, one episode of each environment", at_least=0, follows="task", scope=RUN,
    decides=True, )  # fmt: skip
    seed_actions: str = key(
        "uniform", "random actions: each for itself (uniform), or pink noise, whose neighbours are alike: finds rare "
        "rewards sooner", choices=("uniform", "pink"), scope=RUN, decides=True,
    )  # fmt: skip
    fit_encoder: bool = key(
        True, "images: scale the encoder's layers to those of the first batch before the first update; false: as in "
        "TD-MPC2, which learns little where rewards are rare", scope=RUN, decides=True,
    )  # fmt: skip
    utd: float = key(1.0, "updates per step of an environment; may be a fraction", above=0, scope=RUN, decides=True)
    buffer_size: int = key(
        1_000_000, "rows of the replay buffer: steps, and one for each episode", at_least=1, scope=RUN, decides=True
    )
    share_body: bool = key(
        False, "tasks that are one body with different rewards learn from each other's steps", scope=RUN, decides=True
    )
    demonstrations: str | None = key(
        None, "episode store or directory of chunk_*.pt files that half of each batch is drawn from; null: none",
        path=True, scope=RUN, on_resume=MAY_CHANGE, decides=True,
    )  # fmt: skip
    bc_coef: float = key(
        0.0, "coefficient of the policy's distance from the actions of the demonstrations; 0: none", at_least=0,
        sensible=MOST_COEF, scope=RUN, decides=True,
    )  # fmt: skip
    collect_num_samples: int | None = key(
        None, "num_samples while collecting; null: as in evaluations", at_least=2, scope=RUN, decides=True
    )
    collect_iterations: int | None = key(
        None, "iterations while collecting; null: as in evaluations", at_least=1, scope=RUN, decides=True
    )
    collect_policy: float = key(
        0.0, "share of the steps that the policy takes alone while collecting", at_least=0, at_most=1, scope=RUN,
        decides=True,
    )  # fmt: skip
    collect_precision: str = key(
        "fp32", "number format of the products of plans while collecting; bf16 is for the CPU kernels",
        choices=("fp32", "bf16"), scope=RUN, decides=True,
    )  # fmt: skip
    episodic: bool = key(False, "episodes may terminate before their time limit, and the model learns to predict it")
    termination_coef: float = key(1.0, "coefficient of the termination loss", at_least=0, sensible=MOST_COEF)

    distillation_targets: tuple[str, ...] = key(
        ("reward",), "what the student learns from its teacher: NAME or 'NAME WEIGHT'", section="Distillation"
    )
    teachers: tuple[TaskTeacher, ...] | None = key(
        None, "teachers of single tasks, {TASK: FILE, ...}; the others are not distilled. null: that of teacher_config",
        parse=parse_teachers, scope=RUN, on_resume=MAY_CHANGE,
    )  # fmt: skip
    distillation_weight: float = key(
        0.45, "coefficient of each target without a weight of its own", at_least=0, sensible=MOST_COEF
    )
    distillation_schedule: str = key(
        "constant", "factor on all distillation weights over training",
        choices=("constant", "linear", "cosine", "gap"),
    )  # fmt: skip
    distillation_temperature: float = key(2.0, "softmax temperature of the target reward_logits", at_least=1e-6)
    distillation_cache: str = key(
        "off", "keep what a teacher says beside the data, where possible: as it is used (lazy) or all first (full)",
        choices=("off", "lazy", "full"), scope=RUN, on_resume=MAY_CHANGE,
    )  # fmt: skip

    mpc: bool = key(
        True, "false: act with the policy alone, without planning; evaluations also know `both`", on_resume=MAY_CHANGE,
        commands=("train", *PLAYING), section="Planning",
    )  # fmt: skip
    planner: str | None = key(
        None, "a name for several of the keys below: full (512 samples, 6 iterations), fast (128, 3, from the policy) "
        "or policy (mpc=false); keys that are typed win", choices=tuple(PRESETS), scope=RUN, on_resume=ONE_START,
        commands=("train", *PLAYING),
    )  # fmt: skip
    iterations: int = key(
        6, "MPPI iterations per plan; two more where a task has 20 actions or more", at_least=1, sensible=10_000,
        plans=True, on_resume=MAY_CHANGE, commands=("train", *PLAYING),
    )  # fmt: skip
    num_samples: int = key(
        512, "action sequences per iteration", at_least=2, sensible=2**24, plans=True, on_resume=MAY_CHANGE,
        commands=("train", *PLAYING),
    )  # fmt: skip
    num_elites: int = key(
        None, "best sequences the next iteration is drawn from; null: an eighth of num_samples", at_least=1,
        follows="num_samples", plans=True, on_resume=MAY_CHANGE, commands=("train", *PLAYING),
    )  # fmt: skip
    num_pi_trajs: int = key(
        None, "sequences proposed by the policy; null: 24 of 512 num_samples", at_least=1, follows="num_samples",
        plans=True, on_resume=MAY_CHANGE, commands=("train", *PLAYING),
    )  # fmt: skip
    horizon: int = key(
        3, "steps the model looks ahead, in planning and in training", at_least=1, plans=True,
        commands=("train", *PLAYING),
    )  # fmt: skip
    min_std: float = key(
        0.05, "smallest standard deviation of a plan", at_least=0, plans=True, on_resume=MAY_CHANGE,
        commands=("train", *PLAYING),
    )  # fmt: skip
    max_std: float = key(
        2.0, "first and largest standard deviation of a plan", at_least=0, plans=True, on_resume=MAY_CHANGE,
        commands=("train", *PLAYING),
    )  # fmt: skip
    plan_action: str = key(
        "sample", "what is executed of a plan: an elite drawn by its weight (sample), or the elites' weighted mean",
        choices=("sample", "mean"), plans=True, on_resume=MAY_CHANGE, commands=("train", *PLAYING),
    )  # fmt: skip
    plan_start: str = key(
        "previous", "what a plan starts from: the previous plan, or the policy's own actions without noise (policy)",
        choices=("previous", "policy"), plans=True, on_resume=MAY_CHANGE, commands=("train", *PLAYING),
    )  # fmt: skip
    temperature: float = key(
        0.5, "how strongly better elites count more", at_least=0, plans=True, on_resume=MAY_CHANGE,
        commands=("train", *PLAYING),
    )  # fmt: skip

    model_size: int | None = key(
        1, "millions of parameters: 1, 5, 19, 48 or 317; null: the widths below as typed", section="Architecture"
    )
    enc_dim: int = key(None, "width of the encoder", at_least=1, sensible=2**20, follows="model_size")
    num_enc_layers: int = key(None, "layers of the encoder", at_least=1, sensible=1000, follows="model_size")
    mlp_dim: int = key(None, "width of all other networks", at_least=1, sensible=2**20, follows="model_size")
    latent_dim: int = key(None, "size of the latent state", at_least=1, sensible=2**20, follows="model_size")
    num_q: int = key(None, "Q heads", at_least=2, sensible=1000, follows="model_size")
    task_dim: int = key(None, "size of the task embedding", at_least=0, sensible=2**16, follows="model_size")
    dropout: float = key(0.01, "dropout of the Q heads while training", at_least=0, at_most=0.999)
    simnorm_dim: int = key(8, "size of the groups the latent state is normalised in", at_least=1)
    num_channels: int = key(32, "channels of the encoder of images (obs=rgb, rgb+state)", at_least=1, sensible=2**16)
    num_bins: int = key(101, "bins that rewards and values are regressed on", at_least=2, sensible=2**20)
    vmin: float = key(-10.0, "lowest bin, in symlog space")
    vmax: float = key(10.0, "highest bin, in symlog space")
    log_std_min: float = key(-10.0, "lower bound of the policy's log standard deviation")
    log_std_max: float = key(2.0, "upper bound of the policy's log standard deviation")

    eval_episodes: int = key(
        10, "episodes per task of an evaluation", at_least=1, sensible=100_000, scope=RUN,
        on_resume=MAY_CHANGE, decides=True,
        commands=("train", "evaluate"), section="Evaluation",
    )  # fmt: skip
    eval_freq: int = key(
        50_000, "steps (offline: updates) between evaluations; 0: never", at_least=0, scope=RUN, on_resume=MAY_CHANGE
    )
    eval_noise: bool = key(
        False, "true: exploration noise on every action, as in the published protocol", scope=RUN,
        on_resume=MAY_CHANGE, decides=True, commands=("train", "evaluate"),
    )  # fmt: skip
    augment_eval: bool = key(
        False, "true: images are shifted at random while acting too, also while collecting, as in TD-MPC2", scope=RUN,
        decides=True, commands=("train", "evaluate", "collect"),
    )  # fmt: skip
    eval_seed: int = key(
        100, "episode k is played in an environment built with seed eval_seed + k", at_least=0, at_most=2**31 - 1,
        scope=RUN, on_resume=MAY_CHANGE, decides=True, commands=("train", "evaluate"),
    )  # fmt: skip
    eval_weights: str = key(
        "model", "what evaluations of a run play, and best.pt is: the weights, or their average (ema, with ema_decay)",
        choices=("model", "ema"), scope=RUN, decides=True,
    )  # fmt: skip
    compare: str | None = key(
        None, "second checkpoint, or random (actions): report the difference and its interval", path=True, scope=RUN,
        on_resume=MAY_CHANGE, commands=("evaluate",),
    )  # fmt: skip

    episodes_per_task: int = key(
        10, "episodes to collect of each task", at_least=1, sensible=10**6, scope=RUN,
        on_resume=MAY_CHANGE, commands=("collect",),
        section="Collecting",
    )  # fmt: skip
    episodes_per_file: int = key(
        100, "episodes in a chunk file", at_least=1, sensible=100_000, scope=RUN, on_resume=MAY_CHANGE,
        commands=("collect",),
    )  # fmt: skip
    mix: tuple[MixEntry, ...] | None = key(
        None, "who plays which share: {share: 0.3, kind: random|policy|planner, checkpoint: FILE, noise: STD}, ...",
        parse=parse_mix, scope=RUN, on_resume=MAY_CHANGE, commands=("collect",),
    )  # fmt: skip

    device: str = key(
        "auto", "auto, cpu, cuda, cuda:1, mps, ...", scope=RUN, on_resume=MAY_CHANGE,
        commands=("train", "evaluate", "collect"), section="Device",
    )  # fmt: skip
    precision: str = key(
        "auto", "what planning computes in; auto: the fastest that is correct for the file here",
        choices=("auto", "fp32", "bf16", "fp16", "int8"), scope=RUN, on_resume=MAY_CHANGE, decides=True,
        commands=("evaluate", "collect"),
    )  # fmt: skip
    update_precision: str = key(
        "fp32", "what the matrix products of an update compute in; weights stay fp32", choices=("fp32", "bf16")
    )
    compile: str = key(
        "auto", "compile planner and update; auto: where it pays; false: no CPU kernels either",
        choices=("auto", "true", "false"), scope=RUN, on_resume=MAY_CHANGE, commands=COMMANDS,
    )  # fmt: skip
    num_threads: int | None = key(
        None, "CPU threads; null: OMP_NUM_THREADS, else every core of this process", at_least=1, scope=RUN,
        on_resume=MAY_CHANGE, commands=COMMANDS,
    )  # fmt: skip

    log_freq: int = key(
        100, "steps (offline: updates) between lines of the log", at_least=1, scope=RUN, on_resume=MAY_CHANGE,
        section="Logging and saving",
    )  # fmt: skip
    save_freq: int = key(
        10_000, "steps (offline: updates) between checkpoints", at_least=1, scope=RUN, on_resume=MAY_CHANGE
    )
    save_agent: bool = key(True, "write checkpoints", scope=RUN, on_resume=MAY_CHANGE)
    keep_last: int = key(
        1, "newest checkpoints that are kept; all but model.pt are model_<step>.pt", at_least=1, scope=RUN,
        on_resume=MAY_CHANGE,
    )  # fmt: skip
    save_best: bool = key(
        True, "keep best.pt, the checkpoint with the highest score while training", scope=RUN, on_resume=MAY_CHANGE
    )
    resume: str = key(
        "auto", "auto: continue the run if there is one; never: refuse to; must: refuse to begin one",
        choices=("auto", "never", "must"), scope=RUN, on_resume=ONE_START,
    )  # fmt: skip
    dry_run: bool = key(
        False, "check everything, estimate time, memory and disk, and stop", scope=RUN, on_resume=ONE_START
    )
    save_csv: bool = key(True, "write train.csv, eval.csv and the like", scope=RUN, on_resume=MAY_CHANGE)
    save_video: bool = key(
        False, "write a video of one episode per task at each evaluation", scope=RUN, on_resume=MAY_CHANGE,
        commands=("train", "evaluate"),
    )  # fmt: skip
    tracker: tuple[str, ...] = key(
        ("wandb",), "what shows the curves besides the files, one or a list; wandb needs wandb_project", scope=RUN,
        choices=TRACKERS, parse=parse_trackers, on_resume=MAY_CHANGE, section="Trackers",
    )  # fmt: skip
    wandb_project: str | None = key(None, "Weights & Biases project; null: none", scope=RUN, on_resume=MAY_CHANGE)
    wandb_entity: str | None = key(None, "its user or team; null: the default one", scope=RUN, on_resume=MAY_CHANGE)
    wandb_silent: bool = key(False, "no messages of Weights & Biases", scope=RUN, on_resume=MAY_CHANGE)
    disable_wandb: bool = key(False, "true: log nothing there", scope=RUN, on_resume=MAY_CHANGE)
    teacher_score: float | None = key(
        None, "known normalised score of the teacher, drawn beside the student's", scope=RUN, on_resume=MAY_CHANGE
    )
    control_score: float | None = key(
        None, "that of a student trained for as long without a teacher", scope=RUN, on_resume=MAY_CHANGE
    )
