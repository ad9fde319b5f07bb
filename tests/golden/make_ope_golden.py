#!/usr/bin/env python3
"""make_ope_golden.py - golden/ope: what the Open Bandit Pipeline (obp 0.5.7, Apache-2.0) says of its own
logged data (Open Bandit Dataset, CC BY 4.0): the first 2,500 rows of campaign "men" under Bernoulli
Thompson sampling, what a uniform policy would have earned.  ope.f64: rows of reward, mu, pi, q, v as
little-endian doubles; ope.json: obp's estimates, q and v from its RegressionModel with 2-fold cross-fitting."""
import json, os
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from obp.dataset import OpenBanditDataset
from obp.ope import DirectMethod, DoublyRobust, InverseProbabilityWeighting, RegressionModel, SelfNormalizedInverseProbabilityWeighting

drop, concat = pd.DataFrame.drop, pd.concat       # obp 0.5.7 gives the axis by place, which pandas 2 does not take
pd.DataFrame.drop = lambda self, labels=None, axis=0, **more: drop(self, labels, axis=axis, **more)
pd.concat = lambda objs, axis=0, **more: concat(objs, axis=axis, **more)

N = 2500
data = OpenBanditDataset(behavior_policy="bts", campaign="men").obtain_batch_bandit_feedback()
r, a, mu, pos = (data[k][:N] for k in ("reward", "action", "pscore", "position"))
n_actions, len_list = data["n_actions"], int(data["position"].max()) + 1
pi = np.full((N, n_actions, len_list), 1 / n_actions)
model = RegressionModel(n_actions=n_actions, len_list=len_list, action_context=data["action_context"], base_model=LogisticRegression(max_iter=1000, random_state=1))
q = model.fit_predict(context=data["context"][:N], action=a, reward=r, position=pos, pscore=mu, n_folds=2, random_state=1)
rows = np.arange(N)
common = dict(action_dist=pi, position=pos)
logged = dict(reward=r, action=a, pscore=mu)
out = {
    "rows": N,
    "ips": InverseProbabilityWeighting().estimate_policy_value(**logged, **common),
    "snips": SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**logged, **common),
    "dm": DirectMethod().estimate_policy_value(estimated_rewards_by_reg_model=q, **common),
    "dr": DoublyRobust().estimate_policy_value(estimated_rewards_by_reg_model=q, **logged, **common),
}
v = (q[rows, :, pos] * pi[rows, :, pos]).sum(1)
table = np.stack([r, mu, pi[rows, a, pos], q[rows, a, pos], v], 1).astype("<f8")
here = os.path.join(os.path.dirname(__file__), "ope")
os.makedirs(here, exist_ok=True)
table.tofile(os.path.join(here, "ope.f64"))
json.dump({k: float(x) if k != "rows" else x for k, x in out.items()}, open(os.path.join(here, "ope.json"), "w"), indent=1)
print(out)
