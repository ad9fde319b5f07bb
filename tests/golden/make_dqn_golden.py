#!/usr/bin/env python3
"""Ten steps of double, dueling DQN with n-step returns, masks and importance weights, by PyTorch in double precision.

    python3 make_dqn_golden.py OUT.json   (needs torch)
"""
import json, sys
import torch
torch.set_default_dtype(torch.float64)
torch.manual_seed(4)
D, H, A, B, STEPS, LR, CLIP, HUBER = 6, 8, 3, 6, 10, 1e-2, 1.0, 0.5
names = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "head.weight", "head.bias"]
shapes = [(H, D), (H,), (H, H), (H,), (1 + A, H), (1 + A,)]
r32 = lambda *s: torch.randn(*s).float().double()          # what an f32 holds exactly
online = [(0.5 * r32(*s)).float().double().requires_grad_() for s in shapes]
target = [(0.5 * r32(*s)).float().double() for s in shapes]
def q(p, x):
    x = torch.relu(x @ p[0].T + p[1]); x = torch.relu(x @ p[2].T + p[3]); va = x @ p[4].T + p[5]
    return va[:, :1] + va[:, 1:] - va[:, 1:].mean(1, keepdim=True)
f = lambda t: [round(float(v), 17) for v in t.detach().reshape(-1)]
out = {"shape": [D, H, A, B], "lr": LR, "clip": CLIP, "huber": HUBER, "names": names, "online": [f(p) for p in online], "target": [f(p) for p in target], "steps": []}
opt = torch.optim.Adam(online, lr=LR)
for t in range(STEPS):
    s, n, ret, w = r32(B, D), r32(B, D), r32(B), torch.rand(B).float().double() * 0.9 + 0.1
    discount = torch.tensor([0.99 ** 3] * B).float().double(); discount[t % B] = 0     # an end
    action, mask = torch.randint(A, (B,)), torch.randint(0, 2, (B, A)); mask[torch.arange(B), torch.randint(A, (B,))] = 1
    with torch.no_grad():
        best = q(online, n).masked_fill(mask == 0, -torch.inf).argmax(1)
        y = ret + discount * q(target, n)[torch.arange(B), best]
    d = q(online, s)[torch.arange(B), action] - y
    loss = (w * torch.nn.functional.huber_loss(d, torch.zeros(B), reduction="none", delta=HUBER)).mean()
    opt.zero_grad(); loss.backward()
    grads = [f(p.grad) for p in online]
    norm = torch.nn.utils.clip_grad_norm_(online, CLIP)
    opt.step()
    out["steps"].append({"state": f(s), "next": f(n), "return": f(ret), "weight": f(w), "discount": f(discount), "action": action.tolist(), "mask": mask.reshape(-1).tolist(),
                         "loss": loss.item(), "error": f(d.abs()), "norm": float(norm), **({"grads": grads} if t == 0 else {})})
out["after"] = [f(p) for p in online]
json.dump(out, open(sys.argv[1], "w"))
