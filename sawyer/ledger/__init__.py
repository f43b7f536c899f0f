"""The book: one writer, signed entries, one Merkle tree, live views, replay. Knows no bus and no model."""
