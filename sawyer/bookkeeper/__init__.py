"""The ledger's program: signed commands off the bus, into the one writer; answers to questions about the book."""
