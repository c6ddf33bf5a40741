"""Builds: a Dockerfile or a recipe becomes an image, layer by layer, in sandboxes of ours and without a daemon."""
