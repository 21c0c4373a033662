"""What would be the same in a project about birds: files, processes, shards of work, precision."""
