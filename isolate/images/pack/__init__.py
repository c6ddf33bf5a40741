"""From a tree to an archive, and from two trees to what differs."""
