#!/usr/bin/env python3
"""One step of cloning and three of conservative double Q-learning (Kumar et al. 2020, equation 4) under masks, by PyTorch in double precision.

No dueling: cloning gives the value of a state a gradient of exactly 0, which Adam would scale to the noise of rounding.

    python3 make_offline_golden.py OUT.json   (needs torch)
"""
import json, sys
import torch
torch.set_default_dtype(torch.float64)
torch.manual_seed(6)
D, H, A, B, STEPS, LR, HUBER, ALPHA, GAMMA, N = 5, 8, 4, 6, 4, 1e-2, 0.5, 0.7, 0.875, 24
names = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "head.weight", "head.bias"]
shapes = [(H, D), (H,), (H, H), (H,), (A, H), (A,)]
r32 = lambda *s: torch.randn(*s).mul(256).round().div(256)          # short, and what an f32 holds exactly
online = [(0.5 * r32(*s)).requires_grad_() for s in shapes]
def q(p, x):
    x = torch.relu(x @ p[0].T + p[1]); x = torch.relu(x @ p[2].T + p[3]); return x @ p[4].T + p[5]
f = lambda t, n=12: [round(float(v), n) for v in t.detach().reshape(-1)]
state, nxt, reward = r32(N, D), r32(N, D), r32(N)
mask, next_mask = torch.randint(0, 2, (N, A)), torch.randint(0, 2, (N, A))
action = torch.randint(A, (N,)); mask[torch.arange(N), action] = 1
next_mask[torch.arange(N), torch.randint(A, (N,))] = 1
ends = torch.arange(N) % 5 == 4
rows = [{"state": f(state[i]), "mask": mask[i].tolist(), "action": int(action[i]), "reward": float(reward[i]), "terminated": bool(ends[i]),
         **({} if ends[i] else {"next": f(nxt[i]), "next_mask": next_mask[i].tolist()})} for i in range(N)]
out = {"shape": [D, H, A, B], "lr": LR, "huber": HUBER, "alpha": ALPHA, "gamma": GAMMA, "names": names, "online": [f(p) for p in online], "rows": rows, "steps": []}
opt = torch.optim.Adam(online, lr=LR)
target = None
for t in range(STEPS):
    i = torch.randint(N, (B,)); i[0] = 5 * t + 4
    now = q(online, state[i])
    feasible = now.masked_fill(mask[i] == 0, -torch.inf)
    gap = (feasible.logsumexp(1) - now[torch.arange(B), action[i]]).mean()
    if t == 0:
        loss = td = gap
    else:
        with torch.no_grad():
            best = q(online, nxt[i]).masked_fill(next_mask[i] == 0, -torch.inf).argmax(1)
            y = reward[i] + GAMMA * ~ends[i] * q(target, nxt[i])[torch.arange(B), best]
        td = torch.nn.functional.huber_loss(now[torch.arange(B), action[i]], y, delta=HUBER)
        loss = td + ALPHA * gap
    opt.zero_grad(); loss.backward(); grads = [f(p.grad) for p in online]; opt.step()
    if t == 0: target = [p.detach().clone() for p in online]         # what was cloned is the first target
    out["steps"].append({"ids": i.tolist(), "loss": td.item(), "gap": gap.item(), "grads": grads})
out["after"] = [f(p) for p in online]
json.dump(out, open(sys.argv[1], "w"))
