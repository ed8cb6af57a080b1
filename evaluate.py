"""Score a checkpoint by playing its tasks.

python evaluate.py checkpoint=models/student.pt
python evaluate.py checkpoint=models/student.pt task=walker-walk eval_episodes=3 save_video=true
python evaluate.py checkpoint=models/student.pt compare=models/student_int8.pt
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich import get_console

from tdmpc2 import cli, results
from tdmpc2.checkpoint import file_sha256
from tdmpc2.config import RUN_KEYS
from tdmpc2.evaluation import Evaluation, compare, evaluate
from tdmpc2.loading import load_agent
from tdmpc2.runtime import set_num_threads


def score(path: str, keys: dict[str, Any]) -> Evaluation:
    """Evaluate one file; print its table and leave results and videos in its run directory."""
    stem = Path(path).stem
    agent = load_agent(path, **keys)
    cfg = agent.cfg.replace(exp_name=agent.cfg.exp_name or f"eval-{stem}")
    protocol = {
        "checkpoint": path,
        "sha256": file_sha256(path),
        "action": "planner" if cfg.mpc else "policy",
        "precision": agent.precision,
        "device": str(agent.device),
        "num_threads": set_num_threads(cfg.num_threads),
        "compiled": cfg.compile,
        "config": cfg.to_dict(),
    }
    budget = f"{cfg.plan_iterations} x {cfg.num_samples} samples, horizon {cfg.horizon}" if cfg.mpc else "no planning"
    noise = "with exploration noise" if cfg.eval_noise else "noise-free"
    print(f"{stem}: {protocol['action']} ({budget}), {agent.precision} on {agent.device}, {noise}")
    if line := agent.compile_planner(len(cfg.task_ids) * cfg.eval_episodes * 500):
        print(line)
    result, firsts = evaluate(agent, cfg)
    get_console().print(results.table(result, stem))
    directory = results.fresh_directory(cfg.run_dir)
    results.write_results(directory, result, protocol)
    for episode in firsts if cfg.save_video else ():
        name = cfg.task_specs[episode.job.task_id].name
        results.write_video(directory / f"{name}.mp4", episode.frames)
    print(f"Results: {directory}")
    return result


@hydra.main(config_name="config_mt30", config_path="./student_config", version_base="1.3")
@cli.one_line_errors
def main(cfg: DictConfig) -> None:
    settings = cli.composed(cfg)
    keys = {key: settings[key] for key in RUN_KEYS} | cli.explicit_keys(cfg)
    path, other = keys.pop("checkpoint"), keys.get("compare")
    if path is None:
        raise ValueError("Nothing to evaluate: name a file, as in `python evaluate.py checkpoint=models/student.pt`")
    result = score(path, keys)
    if other is not None:
        difference, interval = compare(result, score(other, keys))
        print(f"{path} minus {other}: {difference:+.2f} {results.format_interval(interval)}")
    print(f"Normalized score: {result.normalized_score:.2f}")


if __name__ == "__main__":
    cli.run(main)
