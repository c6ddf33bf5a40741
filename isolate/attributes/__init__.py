"""Attributes of a process: credentials, resource limits, scheduling, no_new_privs, the session keyring."""
