"""The manifest's rows: found and counted, planned as blocks, read, and the columns they travel in."""
