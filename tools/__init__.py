"""Workshop: prepares data, compares, reports and releases; imports the bundle (scripts/), which never imports it."""
