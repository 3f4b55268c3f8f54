"""One function per thing to do: train, test, reconstruct, extract, draw."""
