"""Tissue first, contrast second: a companion to Lüpke et al. 2024 (arXiv 2409.13532).

The core is the files of this folder, read in the order of the chapters: ``physics`` turns tissue into signal,
``tissue`` says what tissue measures, ``slices`` holds people for a network, ``vae`` and ``losses`` go from scans to
tissue, ``composition`` and ``diffusion`` draw tissue that nobody has, ``training``, ``inference``, ``calibration`` and
``weights`` teach, use and keep them. Around it stand folders, from left to right. A file imports only from its own
folder and from what stands to its left:

- ``machine``: what would be the same in a project about birds: files, processes, shards of work, precision.
- the core.
- ``voxelwise``: maps and shares of tissue voxel by voxel, without a network or after one: least squares, baselines.
- ``scans``: files from the world: BIDS, NIfTI, protocols, registration, and the path from scans to maps.
- ``people``: who is scanned: real heads, simulated people with a known truth, people in files, people drawn.
- ``figures``: one house look, and the figures drawn in it.
- ``running``: one experiment in one folder: profiles, trainings, export, the chapters run in order, the report.
- ``evaluation``: how right it is: metrics, tables over people, baselines side by side, ablations.
- ``explorers``: what a reader drags and clicks: widgets over numbers first, drawing second.
- ``cli``: the command ``phyldm``.
"""

__version__ = "0.1.0"
