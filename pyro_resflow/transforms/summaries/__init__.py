"""A table of a flow: its blocks, shapes, parameters, directions and bounds."""
