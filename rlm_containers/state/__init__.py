"""Sessions that are kept: workspaces that outlive their sandboxes, and snapshots of them."""
