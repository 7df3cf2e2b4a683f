"""The threaded drivers: parallel loops that compute one pass of one kind of layer."""
