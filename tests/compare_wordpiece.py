#!/usr/bin/env python3
"""Merx' WordPiece ids beside transformers' BERT tokenizers: every review, and every character of Unicode.

    python3 compare_wordpiece.py BINARY_OF_tokenize_lines BERT_FOLDER REVIEWS_ZIP
"""
import csv, io, subprocess, sys, zipfile
from transformers import BertTokenizer, BertTokenizerFast

binary, folder, reviews = sys.argv[1:4]
name = zipfile.ZipFile(reviews).namelist()[0]
rows = csv.DictReader(io.TextIOWrapper(zipfile.ZipFile(reviews).open(name), "utf-8-sig"))
texts = [r["review"] for r in rows if r["review"] and r["review"].strip()]
chars = ["a" + chr(c) + "B" + chr(c) for c in range(1, 0x110000) if not 0xd800 <= c < 0xe000]

def ours(batch):
    out = subprocess.run([binary, folder, "nul"], input=b"".join(t.encode() + b"\0" for t in batch), capture_output=True, check=True).stdout
    return [[int(x) for x in line.split()] for line in out.decode().split("\n")[:len(batch)]]

fast = BertTokenizerFast.from_pretrained(folder)
for what, batch in (("reviews", texts), ("characters", chars)):
    want = fast(batch, add_special_tokens=False)["input_ids"]
    got = ours(batch)
    bad = [i for i in range(len(batch)) if want[i] != got[i]]
    print(f"{what}: {len(batch)} texts, {sum(map(len, want))} ids, {len(bad)} texts differ")
    for i in bad[:10]: print("   ", ascii(batch[i][:60]), want[i][:20], got[i][:20])
