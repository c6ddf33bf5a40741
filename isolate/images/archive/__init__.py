"""Archives in the formats of tar: read from hostile bytes, written deterministically. Nothing here touches a file."""
