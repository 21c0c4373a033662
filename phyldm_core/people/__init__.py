"""Who is scanned: real heads, simulated people with a known truth, people in files, people drawn."""
