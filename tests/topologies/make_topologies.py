#!/usr/bin/env python3
"""Writes small descriptions of large machines in hwloc's version 2 XML.

  make_topologies.py two_packages_four_gpus > FILE     4 cores of 2 threads and 2 GPUs a package
  make_topologies.py dgx > FILE          2 packages of 56 cores of 2 threads, 4 GPUs each
  make_topologies.py grace > FILE        72 cores of one thread, a GPU whose memory is a node too
  make_topologies.py container > FILE    64 cores, of which a cgroup allows 2

Hardware threads are numbered as Linux numbers them: first those of all cores, then the second ones.
"""
import sys

KINDS = {"two_packages_four_gpus": (2, 4, 2, 2), "dgx": (2, 56, 2, 4), "grace": (1, 72, 1, 1), "container": (1, 64, 1, 0)}
kind = sys.argv[1] if len(sys.argv) > 1 else "two_packages_four_gpus"
PACKAGES, CORES, THREADS, GPUS = KINDS[kind]
ids = iter(range(1, 100000))


def bits(numbers):
    mask = sum(1 << n for n in numbers)
    words = []
    while mask or not words:
        words.insert(0, f"0x{mask & 0xffffffff:08x}")
        mask >>= 32
    return ",".join(words)


def sets(cpus, node):
    return (f'cpuset="{bits(cpus)}" complete_cpuset="{bits(cpus)}" '
            f'nodeset="{bits([node])}" complete_nodeset="{bits([node])}" gp_index="{next(ids)}"')


def package(p):
    total = PACKAGES * CORES
    cores = [[p * CORES + c + t * total for t in range(THREADS)] for c in range(CORES)]
    every = [cpu for core in cores for cpu in core]
    yield f' <object type="Package" os_index="{p}" {sets(every, p)}>'
    yield f'  <object type="NUMANode" os_index="{p}" {sets(every, p)} local_memory="68719476736"/>'
    for c, threads in enumerate(cores):
        yield f'  <object type="Core" os_index="{c}" {sets(threads, p)}>'
        for cpu in threads:
            yield f'   <object type="PU" os_index="{cpu}" {sets([cpu], p)}/>'
        yield '  </object>'
    if GPUS:
        bus = 0x10 + p * 0x80
        yield (f'  <object type="Bridge" gp_index="{next(ids)}" bridge_type="0-1" depth="0" '
               f'bridge_pci="0000:[{bus:02x}-{bus + 15:02x}]">')
        for g in range(GPUS):
            yield (f'   <object type="PCIDev" gp_index="{next(ids)}" pci_busid="0000:{bus + 1 + g:02x}:00.0" '
                   'pci_type="0302 [10de:2330] [10de:16c1] a1" pci_link_speed="63.015385">')
            yield '    <info name="PCIVendor" value="NVIDIA Corporation"/>'
            yield '   </object>'
        yield '  </object>'
    yield ' </object>'


everything = range(PACKAGES * CORES * THREADS)
allowed = [5, 9] if kind == "container" else everything
nodes = range(PACKAGES + (kind == "grace"))
print('<?xml version="1.0" encoding="UTF-8"?>')
print('<!DOCTYPE topology SYSTEM "hwloc2.dtd">')
print('<topology version="2.0">')
print(f'<object type="Machine" os_index="0" cpuset="{bits(everything)}" complete_cpuset="{bits(everything)}" '
      f'allowed_cpuset="{bits(allowed)}" nodeset="{bits(nodes)}" complete_nodeset="{bits(nodes)}" '
      f'allowed_nodeset="{bits(nodes)}" gp_index="{next(ids)}">')
if kind == "grace":
    print(f' <object type="NUMANode" os_index="1" cpuset="0x0" complete_cpuset="0x0" nodeset="{bits([1])}" '
          f'complete_nodeset="{bits([1])}" gp_index="{next(ids)}" local_memory="103079215104"/>')
for p in range(PACKAGES):
    print('\n'.join(package(p)))
print('</object>\n</topology>')
