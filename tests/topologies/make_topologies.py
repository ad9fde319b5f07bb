#!/usr/bin/env python3
"""Writes two_packages_four_gpus.xml: a small machine in hwloc's version 2 XML.

Two packages, each with one NUMA node of 64 GiB, four cores of two hardware
threads (numbered as Linux numbers them: first threads 0-7, second ones 8-15)
and two GPUs behind its own PCI bridge.  Usage: make_topologies.py > FILE
"""

PACKAGES, CORES, GPUS = 2, 4, 2
ids = iter(range(1, 1000))


def sets(cpus, node):
    mask, nodes = sum(1 << c for c in cpus), 1 << node
    return (f'cpuset="0x{mask:08x}" complete_cpuset="0x{mask:08x}" '
            f'nodeset="0x{nodes:08x}" complete_nodeset="0x{nodes:08x}" gp_index="{next(ids)}"')


def package(p):
    total = PACKAGES * CORES
    cores = [(p * CORES + c, p * CORES + c + total) for c in range(CORES)]
    every = [cpu for core in cores for cpu in core]
    yield f' <object type="Package" os_index="{p}" {sets(every, p)}>'
    yield f'  <object type="NUMANode" os_index="{p}" {sets(every, p)} local_memory="68719476736"/>'
    for c, threads in enumerate(cores):
        yield f'  <object type="Core" os_index="{c}" {sets(threads, p)}>'
        for cpu in threads:
            yield f'   <object type="PU" os_index="{cpu}" {sets([cpu], p)}/>'
        yield '  </object>'
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


everything = (1 << PACKAGES * CORES * 2) - 1
nodes = (1 << PACKAGES) - 1
print('<?xml version="1.0" encoding="UTF-8"?>')
print('<!DOCTYPE topology SYSTEM "hwloc2.dtd">')
print('<topology version="2.0">')
print(f'<object type="Machine" os_index="0" cpuset="0x{everything:08x}" complete_cpuset="0x{everything:08x}" '
      f'allowed_cpuset="0x{everything:08x}" nodeset="0x{nodes:08x}" complete_nodeset="0x{nodes:08x}" '
      f'allowed_nodeset="0x{nodes:08x}" gp_index="{next(ids)}">')
for p in range(PACKAGES):
    print('\n'.join(package(p)))
print('</object>\n</topology>')
