"""Load checkpoints of the reference implementation as flows of this package."""
