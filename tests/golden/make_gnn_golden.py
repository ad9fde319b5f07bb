#!/usr/bin/env python3
"""Graph networks as PyTorch Geometric computes them, in double precision.

    python3 make_gnn_golden.py OUT_FOLDER     (needs torch, torch_geometric, safetensors)

A folder for each network: config.json and model.safetensors, data.safetensors
(edges by relation, features, classes, splits; weights where the network has them),
want.safetensors (output of all nodes, loss) and grad.safetensors (of the summed
cross-entropy over all nodes).
"""
import json, os, sys
import torch
from safetensors.torch import save_file
from torch_geometric.nn import SAGEConv, GCNConv, GATConv, RGCNConv, LGConv

out = sys.argv[1]
N, F, HID, CLASSES, EDGES, REL = 23, 7, 8, 5, 71, 3
RUNS = {
    "sage": dict(kind="sage"), "sage-max": dict(kind="sage", max=True), "sage-unit": dict(kind="sage", unit=True), "gcn": dict(kind="gcn"),
    "gat": dict(kind="gat", heads=4, out_heads=3, activation="elu"), "rgcn": dict(kind="rgcn", relations=REL), "lightgcn": dict(kind="lightgcn", activation="none"),
}
for name, c in RUNS.items():
    torch.manual_seed(11)
    kind, light = c["kind"], c["kind"] == "lightgcn"
    cfg = dict(model_type="merx_gnn", kind=kind, task="classes", layers=2, features=0 if light else F, id_nodes=N if light else 0, id_cols=CLASSES if light else 0,
               hidden=HID, outputs=CLASSES, heads=c.get("heads", 0), out_heads=c.get("out_heads", 0), relations=c.get("relations", 0), max=c.get("max", False),
               unit=c.get("unit", False), activation=c.get("activation", "relu"))
    pairs = sorted({(int(a), int(b)) for a, b in torch.randint(0, N, (EDGES, 2)) if a != b and int(b) != N - 1})     # the last node hears nobody
    relation = torch.randint(0, REL if kind == "rgcn" else 1, (len(pairs),))
    if light: pairs = sorted({(a, b) for x, y in pairs for a, b in ((x, y), (y, x))}); relation = torch.zeros(len(pairs), dtype=torch.long)
    edge = torch.tensor(pairs).t()
    weight = (torch.rand(len(pairs)) + 0.5) if kind == "gcn" else None
    x = torch.randn(N, CLASSES if light else F)
    label = torch.randint(0, CLASSES, (N,))
    conv = []
    for l in range(2):
        i, o, end = (F, HID, False) if l == 0 else (HID, CLASSES, True)
        if kind == "sage": conv.append(SAGEConv(i, o, aggr="max" if c.get("max") else "mean", normalize=c.get("unit", False)))
        if kind == "gcn": conv.append(GCNConv(i, o))
        if kind == "gat": conv.append(GATConv(i, o, heads=3, concat=False) if end else GATConv(i, o // 4, heads=4))
        if kind == "rgcn": conv.append(RGCNConv(i, o, REL, aggr="mean"))
        if light: conv.append(LGConv())
    for m in conv:
        for p in m.parameters(): torch.nn.init.normal_(p, std=0.5)
    conv = [m.double() for m in conv]
    act = torch.nn.functional.elu if kind == "gat" else torch.relu
    table = x.double().requires_grad_(light)
    h, layers = table, [table]
    for l, m in enumerate(conv):
        if kind == "gcn": h = m(h, edge, weight.double())
        elif kind == "rgcn": h = m(h, edge, relation)
        else: h = m(h, edge)
        if l == 0 and not light: h = act(h)
        layers.append(h)
    if light: h = sum(layers) / len(layers)
    loss = torch.nn.functional.cross_entropy(h, label, reduction="sum")
    loss.backward()
    tensors, grads = {}, {}
    def put(n, p):
        tensors[n], grads[n] = p.detach().float().contiguous(), p.grad.float().contiguous()
    for l, m in enumerate(conv):
        for n, p in m.named_parameters():
            if kind == "rgcn" and n == "weight":
                for r in range(REL):
                    tensors[f"convs.{l}.weight.{r}"] = p.detach()[r].t().float().contiguous()
                    grads[f"convs.{l}.weight.{r}"] = p.grad[r].t().float().contiguous()
            elif kind == "rgcn" and n == "root":
                tensors[f"convs.{l}.root"], grads[f"convs.{l}.root"] = p.detach().t().float().contiguous(), p.grad.t().float().contiguous()
            elif n.startswith("att_"):
                tensors[f"convs.{l}.{n}"], grads[f"convs.{l}.{n}"] = p.detach().float().reshape(1, -1).contiguous(), p.grad.float().reshape(1, -1).contiguous()
            else: put(f"convs.{l}.{n}", p)
    if light: put("embedding.weight", table)
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    data = {"edges": edge.t().int().contiguous(), "relation": relation.int(), "label": label.int(),
            "train": torch.arange(15).int(), "valid": torch.arange(15, 19).int(), "test": torch.arange(19, N).int()}
    if not light: data["features"] = x
    if weight is not None: data["weight"] = weight
    json.dump(cfg, open(os.path.join(folder, "config.json"), "w"), indent=1)
    save_file(tensors, os.path.join(folder, "model.safetensors"))
    save_file(grads, os.path.join(folder, "grad.safetensors"))
    save_file(data, os.path.join(folder, "data.safetensors"))
    save_file({"out": h.detach().float().contiguous(), "loss": loss.detach().float().reshape(1)}, os.path.join(folder, "want.safetensors"))
