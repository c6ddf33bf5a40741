"""Work on hostile bytes and on files of other owners, done in a child that can reach nothing else."""
