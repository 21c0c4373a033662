"""Files from the world: BIDS, NIfTI, protocols, registration, and the path from scans to maps."""
