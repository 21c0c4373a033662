"""Maps and shares of tissue voxel by voxel, without a network or after one: least squares, baselines."""
