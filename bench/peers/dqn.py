#!/usr/bin/env python3
"""Environment steps and updates per second of DQN on CartPole-v1: Merx beside Stable-Baselines3, in one run.

    python3 bench/peers/dqn.py --merx build/merx [--shapes default,zoo] [--steps N] [--repeats 3] [--threads 1] [--out bench/results/NAME.csv]

Needs numpy, torch, gymnasium, stable-baselines3.  Both act in one world, with the same network, batch, buffer and
ratio of updates to steps, plain DQN (no double, one step).  `default`: SB3's own (64-64, batch 32, an update every 4
steps); `zoo`: rl-zoo3's for CartPole (256-256, batch 64, 128 updates every 256 steps).  The programs take turns; the
median counts.  The time is that of acting and learning: neither start-up nor evaluation is in it.
"""
import argparse, csv, json, os, statistics, subprocess, sys, tempfile, time

SHAPES = {"default": dict(hidden=64, batch=32, every=4, updates=1, target=10000, lr=1e-4, steps=12000),
          "zoo": dict(hidden=256, batch=64, every=256, updates=128, target=10, lr=2.3e-3, steps=6000)}
ap = argparse.ArgumentParser()
ap.add_argument("--merx", default="build/merx")
ap.add_argument("--shapes", default="default,zoo")
ap.add_argument("--steps", type=int, help="of each run; 12,000 and 6,000 when not given: both shapes take three minutes")
ap.add_argument("--repeats", type=int, default=3)
ap.add_argument("--threads", type=int, default=1)
ap.add_argument("--out")
ap.add_argument("--worker", choices=SHAPES)
a = ap.parse_args()
STARTS = 1000

if a.worker:
    import torch
    from stable_baselines3 import DQN
    s = SHAPES[a.worker]
    torch.set_num_threads(a.threads)
    m = DQN("MlpPolicy", "CartPole-v1", learning_rate=s["lr"], buffer_size=100000, learning_starts=STARTS, batch_size=s["batch"], train_freq=s["every"],
            gradient_steps=s["updates"], target_update_interval=s["target"], policy_kwargs=dict(net_arch=[s["hidden"]] * 2), seed=1, device="cpu")
    start = time.perf_counter()
    m.learn(a.steps, log_interval=None)
    seconds = time.perf_counter() - start
    print(json.dumps({"steps": m.num_timesteps, "updates": m._n_updates, "seconds": seconds}))
    sys.exit()

def steps_of(shape): return a.steps or SHAPES[shape]["steps"]

def merx(shape):
    s = SHAPES[shape]
    with tempfile.TemporaryDirectory() as run:
        subprocess.run([a.merx, "train", "dqn", "--env", "cartpole", "--run", run, "--envs", "1", "--steps", str(steps_of(shape)), "--hidden", str(s["hidden"]), "--hidden",
                        str(s["hidden"]), "--batch", str(s["batch"]), "--train-every", str(s["every"]), "--updates", str(s["updates"]), "--buffer", "100000",
                        "--learn-starts", str(STARTS), "--target-every", str(max(1, s["target"] * s["updates"] // s["every"])), "--tau", "1", "--lr", str(s["lr"]),
                        "--min-lr", str(s["lr"]), "--n-step", "1", "--double-q=false", "--epsilon-part", "0.1", "--eval-every", "0", "--episodes", "1", "--quiet",
                        "--threads", str(a.threads)], check=True)
        last = json.loads(open(os.path.join(run, "metrics.jsonl")).read().splitlines()[-1])
    return {"steps": last["step"], "updates": last["updates"], "seconds": last["step"] / last["steps_per_s"]}

def peer(shape):
    out = subprocess.run([sys.executable, os.path.abspath(__file__), "--worker", shape, "--steps", str(steps_of(shape)), "--threads", str(a.threads)], check=True,
                         capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])

rows = []
for shape in a.shapes.split(","):
    got = {"merx": [], "sb3": []}
    for _ in range(a.repeats):
        got["merx"].append(merx(shape)); got["sb3"].append(peer(shape))
    rate = {}
    for who, runs in got.items():
        steps = statistics.median(r["steps"] / r["seconds"] for r in runs); updates = statistics.median(r["updates"] / r["seconds"] for r in runs)
        rate[who] = steps
        rows.append([shape, who, a.threads, steps_of(shape), round(steps, 1), round(updates, 1)])
        print(f"{shape:8} {who:5} {steps:10.0f} steps/s {updates:10.0f} updates/s")
    print(f"{shape:8} ratio {rate['merx'] / rate['sb3']:.1f}")
if a.out:
    with open(a.out, "w", newline="") as f:
        csv.writer(f).writerows([["shape", "program", "threads", "steps", "steps_per_s", "updates_per_s"]] + rows)
