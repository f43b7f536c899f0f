"""Computing: trunk, experts, combining, sampling, tokenizing. The only place that imports onnxruntime and tokenizers.

Importing a module that needs one of them raises MissingExtra where it is not installed. Knows no bus and no ledger.
"""
