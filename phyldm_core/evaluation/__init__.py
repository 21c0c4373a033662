"""How right it is: metrics, tables over people, baselines side by side, ablations."""
