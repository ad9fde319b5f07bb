#!/usr/bin/env python3
"""Least squares by numpy: random sales of 7 stores, every group constant a column of its own.

    python3 make_demand_golden.py OUT.json   (needs numpy)
"""
import json, sys
import numpy as np
r = np.random.default_rng(3)
n, k, g = 90, 4, 7
x = r.normal(size=(n, k)); group = r.integers(0, g, n); group[:g] = range(g)
y = x @ [-2.5, 0.4, 0.1, 0.0] + r.normal(size=g)[group] + 0.3 * r.normal(size=n)
design = np.hstack([x, np.eye(g)[group]])
beta, *_ = np.linalg.lstsq(design, y, rcond=None)
e = y - design @ beta
sigma2 = e @ e / (n - k - g)
cov = sigma2 * np.linalg.inv(design.T @ design)
json.dump({"x": x.ravel().tolist(), "y": y.tolist(), "group": group.tolist(), "k": k, "groups": g, "beta": beta[:k].tolist(), "constant": beta[k:].tolist(),
           "error": np.sqrt(np.diag(cov))[:k].tolist(), "sigma": float(np.sqrt(sigma2)), "r2": float(1 - e @ e / ((y - y.mean()) @ (y - y.mean())))}, open(sys.argv[1], "w"))
