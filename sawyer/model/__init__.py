"""Model files: reading checkpoints, splitting them, verifying what a split made, and building graphs from it.

Runs without ONNX Runtime: nothing here computes a token (that is sawyer.engine).
"""
