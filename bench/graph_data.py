#!/usr/bin/env python3
"""Graphs as merx train gnn reads them: one safetensors file (models/gnn_file.h).

    graph_data.py planetoid FOLDER cora OUT.safetensors       tkipf/gcn's pickles, standard split, rows of features that sum to 1
    graph_data.py ratings TRAIN TEST OUT.safetensors           lines "user item ..." (tabs, commas or spaces); users are type 0, items type 1
    graph_data.py csv EDGES FEATURES LABELS OUT.safetensors    CSV without headings: from,to[,weight]; node columns; node,class,split
                                                               (split: train, valid or test; FEATURES may be -)

Needs numpy and safetensors; planetoid also scipy.
"""
import csv, pickle, sys
import numpy as np
from safetensors.numpy import save_file


def planetoid(folder, name):
    def load(part):
        with open(f"{folder}/ind.{name}.{part}", "rb") as f: return pickle.load(f, encoding="latin1")
    x, tx, allx, y, ty, ally, graph = (load(p) for p in ("x", "tx", "allx", "y", "ty", "ally", "graph"))
    test = np.loadtxt(f"{folder}/ind.{name}.test.index", dtype=np.int64)
    n = max(test.max() + 1, len(graph))                  # citeseer: some test nodes have no features
    features, onehot = np.zeros((n, x.shape[1]), np.float32), np.zeros((n, y.shape[1]))
    features[: allx.shape[0]], onehot[: ally.shape[0]] = allx.toarray(), ally
    features[test], onehot[test] = tx.toarray(), ty
    features /= np.maximum(features.sum(1, keepdims=True), 1e-12) + 0.0
    label = np.where(onehot.sum(1) > 0, onehot.argmax(1), 0)
    pairs = {(u, v) for u in graph for v in graph[u] if u != v} | {(v, u) for u in graph for v in graph[u] if u != v}
    return {"edges": np.array(sorted(pairs), np.int32), "features": features, "label": label.astype(np.int32), "train": np.arange(len(y), dtype=np.int32),
            "valid": np.arange(len(y), len(y) + 500, dtype=np.int32), "test": np.sort(test).astype(np.int32)}


def ratings(train, test):
    def read(path):
        rows = [line.replace(",", " ").split() for line in open(path)]
        return np.array([(int(r[0]), int(r[1])) for r in rows if len(r) >= 2], np.int64)
    a, b = read(train), read(test)
    users, items = max(a[:, 0].max(), b[:, 0].max()) + 1, max(a[:, 1].max(), b[:, 1].max()) + 1
    a, b = np.unique(a, axis=0), np.unique(b, axis=0)
    pairs = np.concatenate([a, b])
    pairs[:, 1] += users
    kind = np.zeros(users + items, np.int32)
    kind[users:] = 1
    return {"edges": pairs[: len(a)].astype(np.int32), "both_ways": np.array([1], np.int32), "type": kind, "pairs": pairs.astype(np.int32),
            "train": np.arange(len(a), dtype=np.int32), "test": np.arange(len(a), len(pairs), dtype=np.int32)}


def tables(edges, features, labels):
    rows = [r for r in csv.reader(open(edges)) if r]
    out = {"edges": np.array([(int(r[0]), int(r[1])) for r in rows], np.int32)}
    if rows and len(rows[0]) > 2: out["weight"] = np.array([float(r[2]) for r in rows], np.float32)
    split = {"train": [], "valid": [], "test": []}
    known = {}
    for node, label, part in csv.reader(open(labels)):
        known[int(node)] = int(label)
        split[part].append(int(node))
    n = max(int(out["edges"].max()), max(known)) + 1
    if features != "-":
        out["features"] = np.loadtxt(features, delimiter=",", dtype=np.float32, ndmin=2)
        n = len(out["features"])
    out["label"] = np.full(n, -1, np.int32)
    for v, c in known.items(): out["label"][v] = c
    out.update({k: np.array(v, np.int32) for k, v in split.items() if v})
    return out


if len(sys.argv) < 4: sys.exit(__doc__)
what, args, to = sys.argv[1], sys.argv[2:-1], sys.argv[-1]
save_file({"planetoid": planetoid, "ratings": ratings, "csv": tables}[what](*args), to)
