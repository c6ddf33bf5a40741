"""The sandbox: parts put together, the verbs that start programs in it, and how they ended."""
