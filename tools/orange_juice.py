#!/usr/bin/env python3
"""orange_juice.py PACKAGE.deb OUT.csv - the orange-juice scanner panel (Dominick's, through
bayesm, GPL-2+) out of Debian's package r-cran-bayesm, as CSV.  Needs the PyPI package
rdata, no R."""
import csv, os, subprocess, sys, tempfile
import rdata

deb, out = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
    base = folder + "/usr/lib/R/site-library/bayesm/data"
    files = os.listdir(base)
    if "orangeJuice.rda" in files:
        data = rdata.read_rda(base + "/orangeJuice.rda")["orangeJuice"]
    else:                                     # R's lazy-load database: an index of places, then compressed values
        import struct, zlib, bz2, lzma
        index = rdata.read_rds(base + "/Rdata.rdx")
        at, size = (int(x) for x in index["variables"]["orangeJuice"])
        raw = open(base + "/Rdata.rdb", "rb").read()[at:at + size]
        length, kind = struct.unpack(">I", raw[:4])[0], raw[4:5]
        if kind == b"2": value = bz2.decompress(raw[5:])
        elif kind == b"Z": value = lzma.decompress(raw[5:])
        else: value = zlib.decompress(raw[4:])
        assert len(value) == length
        data = rdata.conversion.convert(rdata.parser.parse_data(value))
panel = data["yx"]
names = list(panel.columns)
with open(out + ".part", "w", newline="") as f:
    w = csv.writer(f)
    w.writerow(names)
    for row in panel.itertuples(index=False):
        w.writerow(int(x) if float(x) == int(x) else repr(float(x)) for x in row)
os.rename(out + ".part", out)
print(f"{out}: {len(panel)} rows")
