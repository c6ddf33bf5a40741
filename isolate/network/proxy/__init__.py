"""The proxy behind :class:`isolate.network.Domains`: rules, the readers of what clients send, the server.

Clients are hostile. Every length is bounded, every wait has a deadline, and what two programs could read in two ways is
refused.
"""
