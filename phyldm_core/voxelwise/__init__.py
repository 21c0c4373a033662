"""Maps voxel by voxel, without a network or after one: least squares, refining, the baselines."""
