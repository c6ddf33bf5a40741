"""The kernel's words: constants, system calls by name, paths and sizes. Imports nothing of ours."""
