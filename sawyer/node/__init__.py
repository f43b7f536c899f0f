"""The node agent: serves experts, signs receipts, tells the truth about itself."""
