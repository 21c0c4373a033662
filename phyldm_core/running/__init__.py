"""One experiment in one folder: profiles, trainings, export, the chapters run in order, the report."""
