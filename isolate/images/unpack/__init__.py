"""From an archive to a tree: what is done to the file system, and the confined child in which it is done."""
