"""Containers: sandboxes that stay, with or without a program of their own."""
