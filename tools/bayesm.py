#!/usr/bin/env python3
"""bayesm.py PACKAGE.deb FOLDER - two sets of bayesm (GPL-2+) out of Debian's package r-cran-bayesm, as CSV: orange_juice.csv,
Dominick's scanner panel, and margarine.csv, what 516 households bought and what all ten kinds cost on the shelf when they did
(Allenby and Rossi 1991).  Needs the PyPI package rdata, no R."""
import csv, os, subprocess, sys, tempfile
import rdata

deb, out = sys.argv[1:]


def read(base, name):
    if name + ".rda" in os.listdir(base): return rdata.read_rda(f"{base}/{name}.rda")[name]
    import struct, zlib, bz2, lzma                # R's lazy-load database: an index of places, then compressed values
    index = rdata.read_rds(base + "/Rdata.rdx")
    at, size = (int(x) for x in index["variables"][name])
    raw = open(base + "/Rdata.rdb", "rb").read()[at:at + size]
    length, kind = struct.unpack(">I", raw[:4])[0], raw[4:5]
    if kind == b"2": value = bz2.decompress(raw[5:])
    elif kind == b"Z": value = lzma.decompress(raw[5:])
    else: value = zlib.decompress(raw[4:])
    assert len(value) == length
    return rdata.conversion.convert(rdata.parser.parse_data(value))


def write(table, path):
    with open(path + ".part", "w", newline="") as f:
        w = csv.writer(f)
        w.writerow(table.columns)
        for row in table.itertuples(index=False):
            w.writerow(int(x) if float(x) == int(x) else repr(float(x)) for x in row)
    os.rename(path + ".part", path)
    print(f"{path}: {len(table)} rows")


with tempfile.TemporaryDirectory() as folder:
    subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
    base = folder + "/usr/lib/R/site-library/bayesm/data"
    write(read(base, "orangeJuice")["yx"], out + "/orange_juice.csv")
    margarine = read(base, "margarine")
    write(margarine["choicePrice"].merge(margarine["demos"][["hhid", "Income", "Fam_Size"]], on="hhid", how="left"), out + "/margarine.csv")
