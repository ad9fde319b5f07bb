#!/usr/bin/env python3
"""tests/golden/label/slopes.txt: users' looks and purchases with prices, and the own-price slope that scikit-learn's Ridge gives.

    python3 tests/golden/make_label_golden.py

A block a user: "user N SLOPE", then N lines "weight rank bought".
"""
import pathlib
import numpy as np
from sklearn.linear_model import Ridge

rng = np.random.default_rng(7)
out = []
for user in range(40):
    n = int(rng.integers(1, 60))
    weight, rank = rng.uniform(0.05, 1, n).astype(np.float32), rng.uniform(0, 1, n).astype(np.float32)
    reaction = rng.normal(0, 3)
    bought = (rng.uniform(size=n) < 1 / (1 + np.exp(-reaction * (rank - 0.5)))).astype(int)
    if user < 3: bought[:] = user % 2                     # one who only looks or only buys says nothing
    slope = Ridge(alpha=1.0).fit(rank[:, None].astype(np.float64), bought, sample_weight=weight.astype(np.float64)).coef_[0]
    out.append(f"user {n} {slope:.15g}")
    out += [f"{w:.9g} {r:.9g} {b}" for w, r, b in zip(weight, rank, bought)]
pathlib.Path(__file__).with_name("label").joinpath("slopes.txt").write_text("\n".join(out) + "\n")
