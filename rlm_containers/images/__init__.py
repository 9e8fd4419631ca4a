"""Images for sandboxes: made of others, kept in a cache, and moved between engines as files."""
