#!/usr/bin/env python3
"""Trajectories of gymnasium's CartPole-v1 and Acrobot-v1 under random actions.

    python3 make_env_golden.py OUT.json   (needs gymnasium)
"""
import json, sys
import gymnasium, numpy as np
r = np.random.default_rng(5)
out = {"gymnasium": gymnasium.__version__}
for kind, name, episodes, steps in (("cartpole", "CartPole-v1", 6, 60), ("acrobot", "Acrobot-v1", 2, 120)):
    env, rows = gymnasium.make(name), []
    for seed in range(episodes):
        first, _ = env.reset(seed=seed)
        row = {"state": [float(v) for v in env.unwrapped.state], "action": [], "observation": [[float(v) for v in first]], "reward": [], "terminated": []}
        for _ in range(steps):
            # CartPole: mostly against the tilt, so that some episodes go far
            a = int(r.integers(env.action_space.n)) if kind == "acrobot" or r.random() < 0.2 + 0.1 * seed else int(first[2] + 0.5 * first[3] > 0)
            first, reward, terminated, _, _ = env.step(a)
            row["action"].append(a); row["reward"].append(float(reward)); row["terminated"].append(int(terminated))
            row["observation"].append([float(np.float32(v)) for v in first])
            if terminated: break
        rows.append(row)
    out[kind] = rows
json.dump(out, open(sys.argv[1], "w"))
